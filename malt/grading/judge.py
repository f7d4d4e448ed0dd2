"""LLMEvaluator, a model as judge, and the escaping that keeps an answer from steering it.

judge_reply.py reads the replies. The criteria are text: `prompts/<set>/evaluator/`.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypedDict, Unpack, runtime_checkable

from pydantic import JsonValue, ValidationError

from malt.config.base import first_problem
from malt.config.limits import Limits
from malt.config.roles import Fallback, Role
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import ConfigError, EvaluationUnknown, PromptError
from malt.grading.answers import final_answer
from malt.grading.grades import Evaluation, Grade, Outcome, Verdict
from malt.grading.judge_reply import JudgeReply, Score, read_reply, reply_to_empty_answer
from malt.llm.request import Complete, Completion, CompletionRequest, FinishReason, Message
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, content_id

__all__ = ["JudgeReply", "Judgement", "LLMEvaluator", "Score"]

_REPAIR = (
    "That reply cannot be read: {reason}. Judge the same answer again, and reply with one JSON object and nothing "
    "else. Its keys: {keys}. Scores are numbers from 0 to 1; keep every text short."
)
"""Second and last request after an unreadable reply; it repeats none of the criteria."""

REPAIR_TOKENS = len(_REPAIR.encode()) + 512
"""Most tokens of that request beside the prompt and the reply; the reason and the keys are short."""

_KEPT_CHARACTERS = 1000
"""Most characters of an unreadable reply that are shown to the judge again and kept in an error."""


@runtime_checkable
class FormatsMessages(Protocol):
    """Interface of LangChain's chat prompt templates."""

    def format_messages(self, **slots: Any) -> Sequence[Any]:  # noqa: ANN401 - LangChain's own signature
        """Return messages, each with a `type` and a `content`."""
        ...


EvalPrompt: TypeAlias = str | Sequence[tuple[str, str]] | FormatsMessages
"""A judge's prompt that a subclass sets: pairs of role and template, or an object with LangChain's `format_messages`.

Templates name the judge's slots as `{question}` or `{{question}}`; in the first style a literal brace is doubled.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Evaluation):
    """Evaluation with the judge's whole reply, which holds the further scores of a schema subclass."""

    reply: JudgeReply


class JudgeOptions(TypedDict, total=False):
    """Options of a judge besides model and temperature; their defaults are those of `EvaluatorSpec`."""

    correctness_weight: float
    reasoning_weight: float
    max_tokens: int | None
    top_p: float | None
    seed: int | None
    timeout_s: float
    extra: Mapping[str, JsonValue] | None
    api_base: str | None
    api_key_env: str | None
    fallbacks: Sequence[Fallback | str]


class LLMEvaluator:
    """Judge an answer against a reference answer with a model.

    The judge sees the question, the reference and the answer: never which role or branch wrote it. The criteria
    change in four ways. A prompt folder (it needs `evaluator/system.md` and `evaluator/user.md`):

        LLMEvaluator("openai/gpt-4o-mini", prompts="my_prompts")

    Constructor arguments: the weights, or a schema with more scores than the two:

        class StyledReply(JudgeReply):
            brevity_score: Score

        LLMEvaluator(schema=StyledReply, weights={"brevity_score": 0.2}, reasoning_weight=0.3)

    Or a subclass that overrides `build_messages`:

        class StrictEvaluator(LLMEvaluator):
            def build_messages(self, question: str, ground_truth: str, answer: str) -> tuple[Message, ...]:
                system, *turns = super().build_messages(question, ground_truth, answer)
                return (Message(system.role, system.content + "\\nA missing unit makes an answer wrong."), *turns)

    Or a subclass that sets the prompt, as pairs of role and template or as a LangChain template:

        class CustomEvaluator(LLMEvaluator):
            def _setup_prompt(self) -> None:
                self.eval_prompt = [("system", "Grade chemistry …"), ("human", "{question} … {answer}")]

    As a grader it finds an answer right when the weighted score is above 0.5; the reward is the score itself.
    """

    kind: ClassVar[GraderKind] = "llm"

    def __init__(
        self,
        model_name: str = "embedded",
        temperature: float | None = 0.1,
        *,
        prompts: str | Path | PromptSet = "general",
        weights: Mapping[str, float] | None = None,
        schema: type[JudgeReply] = JudgeReply,
        complete: Complete | None = None,
        **options: Unpack[JudgeOptions],
    ) -> None:
        """Set up the judge without sending a request.

        `weights` gives weights to the further scores of `schema`, by field; a score without one does not count.
        `complete` sends its requests, by default through this process's session (store first, then the endpoint).
        `options` are keys of a config's `[evaluator]`: weights, sampling, where the model is served, fallbacks.
        Raises `ConfigError` for a value out of range, `PromptError` for a prompt set that cannot be used.
        """
        self.prompts = prompts if isinstance(prompts, PromptSet) else load_prompts(str(prompts))
        self.schema = schema
        self.model = _declare_judge(model_name, temperature, options)
        self.weights = _all_weights(self.model, weights or {}, schema)
        self._complete = complete or _ask_default
        self.eval_prompt: EvalPrompt | None = None
        self._setup_prompt()
        self._tags = tags_in(self._fill_prompt({"question": "-", "ground_truth": "-", "answer": "-"}))

    @classmethod
    def from_spec(cls, spec: EvaluatorSpec, prompts: PromptSet, complete: Complete) -> Self:
        options: Any = {name: getattr(spec, name) for name in JudgeOptions.__annotations__}
        return cls(spec.model, spec.temperature, prompts=prompts, complete=complete, **options)

    def asking_with(self, complete: Complete) -> Self:
        other = copy.copy(self)
        other._complete = complete
        return other

    async def evaluate_answer(self, question: str, ground_truth: str, answer: str) -> Judgement:
        """Judge one answer; an empty one scores zero without a request.

        Raises `EvaluationUnknown`, with the judge's text, if its reply is unreadable twice, and `RequestFailed` or
        `RunStopped` if it cannot be asked.
        """
        asked = Question(question_id=content_id(question, ground_truth), question=question, ground_truth=ground_truth)
        return await self._judge(asked, answer)

    async def __call__(self, question: Question, text: str) -> Verdict:
        """Grade one answer, as `Grader` says; if the judge's reply is unreadable, the outcome is unknown."""
        answer = final_answer(text)
        try:
            judged = await self._judge(question, text)
        except EvaluationUnknown as error:
            return Verdict(Grade(Outcome.UNKNOWN, answer, self.kind, None, str(error)), decisive=False)
        outcome = Outcome.RIGHT if judged.score > 0.5 else Outcome.WRONG
        if not text.strip():
            outcome = Outcome.UNANSWERED
        # without the judge's reply: a grade holds only the columns that every grader fills
        evaluation = Evaluation(*(getattr(judged, column.name) for column in fields(Evaluation)))
        return Verdict(Grade(outcome, answer, self.kind, evaluation), decisive=True)

    def build_messages(self, question: str, ground_truth: str, answer: str) -> tuple[Message, ...]:
        """Return the judge's messages; override this to change them.

        The evaluator's prompts are filled. Text that would open or close one of the prompt's own tags, or a chat
        template's turn, is escaped first, so that an answer cannot break out of its slot.
        """
        slots = {"question": question, "ground_truth": ground_truth, "answer": answer}
        return self._fill_prompt({name: inert(text, self._tags) for name, text in slots.items()})

    def _setup_prompt(self) -> None:
        """Set `self.eval_prompt` where a subclass overrides this; see `EvalPrompt`."""

    def _fill_prompt(self, slots: Mapping[str, str]) -> tuple[Message, ...]:
        if self.eval_prompt is not None:
            return _render_eval_prompt(self.eval_prompt, slots)
        return self.prompts.messages(Role.EVALUATOR, **slots)

    async def _judge(self, question: Question, answer: str) -> Judgement:
        if not answer.strip():
            return self._judgement(reply_to_empty_answer(self.schema))
        messages = self.build_messages(question.question, question.ground_truth, answer)
        first = await self._ask(messages, question)
        read = self._read(first)
        if isinstance(read, str):
            second = await self._ask((*messages, *self._repair(first, read)), question)
            read = self._read(second)
            if isinstance(read, str):
                raise self._unreadable(second.text, read)
        return self._judgement(read)

    def _unreadable(self, reply: str, problem: str) -> EvaluationUnknown:
        why = f"the judge {self.model.model!r} cannot be read, asked twice: {problem}; it said {_shortened(reply)!r}"
        return EvaluationUnknown(why, reply)

    async def _ask(self, messages: tuple[Message, ...], question: Question) -> Completion:
        request = CompletionRequest(Role.EVALUATOR, self.model, messages, question.question_id, schema=self.schema)
        return (await self._complete(request))[0]

    def _read(self, completion: Completion) -> JudgeReply | str:
        read = read_reply(completion.text, self.schema)
        if isinstance(read, str) and completion.finish_reason == FinishReason.LENGTH:
            return f"it was cut off at max_tokens = {self.model.max_tokens}"
        return read

    def _repair(self, unread: Completion, reason: str) -> tuple[Message, Message]:
        keys = ", ".join(self.schema.model_fields)
        said = inert(_shortened(unread.text), self._tags) or "(nothing)"
        return Message("assistant", said), Message("user", _REPAIR.format(reason=reason, keys=keys))

    def _judgement(self, reply: JudgeReply) -> Judgement:
        weighed = sum(weight * getattr(reply, name) for name, weight in self.weights.items())
        return Judgement(
            correctness_score=reply.correctness_score,
            reasoning_score=reply.reasoning_score,
            explanation=reply.explanation,
            key_matches=reply.key_matches,
            score=weighed / sum(self.weights.values()),
            reply=reply,
        )


async def _ask_default(request: CompletionRequest) -> Sequence[Completion]:
    """Send a request through this process's session and store; only a judge outside a run needs them."""
    from malt.llm.client.completers import make_completer
    from malt.llm.client.session import open_session

    return await make_completer(open_session(Settings(), Limits()), [request.question_id])(request)


def _declare_judge(model: str, temperature: float | None, options: Mapping[str, object]) -> EvaluatorSpec:
    """Return the judge's spec, or raise `ConfigError` for the first invalid value."""
    if unknown := sorted(options.keys() - JudgeOptions.__annotations__.keys()):
        raise TypeError(
            f"LLMEvaluator() has no argument {unknown[0]!r}; it has {', '.join(JudgeOptions.__annotations__)}"
        )
    values = {**options, "extra": options.get("extra") or {}}
    try:
        return EvaluatorSpec.model_validate({**values, "kind": "llm", "model": model, "temperature": temperature})
    except ValidationError as error:
        raise ConfigError(f"LLMEvaluator: {first_problem(error, 'weights', quotes=True)}") from None


def _all_weights(model: EvaluatorSpec, further: Mapping[str, float], schema: type[JudgeReply]) -> dict[str, float]:
    weights = {"correctness_score": model.correctness_weight, "reasoning_score": model.reasoning_weight, **further}
    for name, weight in weights.items():
        if name not in schema.score_names():
            known = ", ".join(schema.score_names())
            raise ConfigError(f"LLMEvaluator: weights: {schema.__name__} has no score {name!r}; it has {known}")
        if not 0 <= weight < inf:
            raise ConfigError(f"LLMEvaluator: weights: {name} is {weight}; it must be a finite number, 0 or more")
    return weights


def _shortened(text: str) -> str:
    return text if len(text) <= _KEPT_CHARACTERS else text[:_KEPT_CHARACTERS] + " […]"


_INVISIBLE = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*+"
"""Space and invisible characters, which a model may overlook inside a tag."""

_TURN_MARKS = re.compile(
    r"<(?=[|\uff5c]|/?s>|(?:start|end)_of_turn>|(?:bos|eos|pad|unk)>|</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)
"""First characters of the control tokens by which chat templates end a turn (ChatML and Llama 3, DeepSeek, Llama 2,
Mistral, Gemma). Some servers act on them anywhere in a text."""


def tags_in(messages: tuple[Message, ...]) -> frozenset[str]:
    """Return the names of the tags in a prompt, which enclose its slots."""
    return frozenset(name for message in messages for name in re.findall(r"</?([A-Za-z][\w-]*)", message.content))


def inert(text: str, tags: frozenset[str]) -> str:
    """Escape the first character of anything that reads as one of these tags or as an end-of-turn token."""
    text = _TURN_MARKS.sub(lambda mark: "&lt;" if mark[0] == "<" else "&#91;", text)
    if not tags:
        return text
    names = "|".join(sorted(map(re.escape, tags), key=len, reverse=True))
    return re.sub(
        rf"[<\uff1c\ufe64](?={_INVISIBLE}(?:[/\uff0f]{_INVISIBLE})?(?:{names})(?![\w-]))",
        "&lt;",
        text,
        flags=re.IGNORECASE,
    )


# A subclass's own prompt.

_TURN_ROLES = {"system": "system", "human": "user", "user": "user", "ai": "assistant", "assistant": "assistant"}
_SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def _render_eval_prompt(prompt: EvalPrompt, slots: Mapping[str, str]) -> tuple[Message, ...]:
    """Fill a judge's own prompt. Raises `PromptError` for one that cannot be filled."""
    try:
        if isinstance(prompt, FormatsMessages):
            return tuple(Message(_TURN_ROLES[each.type], str(each.content)) for each in prompt.format_messages(**slots))
        pairs = [("user", prompt)] if isinstance(prompt, str) else prompt
        return tuple(Message(_TURN_ROLES[role], _fill(text, slots)) for role, text in pairs)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise PromptError(
            f"LLMEvaluator: eval_prompt cannot be filled: {type(error).__name__}: {error}; give pairs such as "
            f'("system", "…"), ("human", "…"), with the slots {", ".join(f"{{{name}}}" for name in slots)}'
        ) from error


def _fill(template: str, slots: Mapping[str, str]) -> str:
    if not slots.keys().isdisjoint(_SLOT.findall(template)):
        return _SLOT.sub(lambda slot: slots[slot[1]], template)
    return template.format(**slots)
