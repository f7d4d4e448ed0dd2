"""The kinds of graders, one class each, and the cascade that they form: each decides, or passes the answer on.

| kind | decides | passes on |
|---|---|---|
| `exact` | the texts are equal but for case, space, markup and surrounding punctuation | a miss |
| `contains` | the reference is in the answer (in the whole reply if none is marked) as whole words | a miss |
| `number` | both sides are numbers | what cannot be read whole as one |
| `math` | both sides are read whole as mathematics | words, what is not read to its end |
| `choice` | the answer names one of the choices | what names none, or several |
| `python` | a score was returned | None |
| `llm` | the judge's reply can be read | |

An answer that no grader decides is wrong (`unanswered` if none was found, `unread` if it could not be read whole),
unless a grader of the cascade failed (time limit, crash, unreadable judge): then it is unknown. Only the judge's
replies are stored, not grades: a rerun grades all answers again.

A new kind is a class here and its name in `GraderKind` of the spec.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Protocol

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import GradingError
from malt.grading.answers import (
    clean,
    final_answer,
    is_true_or_false,
    normalised,
    read_number,
    stands_in,
    without_stop_tokens,
)
from malt.grading.choices import parse_choice, read_choice
from malt.grading.grades import (
    Evaluation,
    Grade,
    Outcome,
    Verdict,
    brief,
    right,
    unanswered,
    unknown,
    unread,
    wrong,
)
from malt.grading.mathematics.verdict import compare_as_mathematics, math_reference, plain_number
from malt.grading.mathematics.worker import is_expression, is_mathematics
from malt.grading.numbers import Quantity, equal, parse_quantity
from malt.grading.process_pool import START_LIMIT_S, CallFailed, run_in_pool, submit
from malt.grading.user_code import call_function, check_function
from malt.llm.request import RequestFailed
from malt.questions.question import Question


class Grader(Protocol):
    """A way of grading: one of the kinds, or the judge."""

    @property
    def kind(self) -> str:
        """Name in `[evaluator] kind`."""
        ...

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Grade a reply; return None if this grader cannot use the reference answer.

        A failed grader returns an unknown grade. Raises `RequestFailed` or `RunStopped` if the judge cannot be asked.
        """


async def grade(question: Question, text: str, graders: Sequence[Grader]) -> Grade:
    """Grade a reply with the first of the graders that can decide; the module says what holds if none can."""
    text = without_stop_tokens(text)
    passed: list[Grade] = []
    for grader in graders:
        try:
            verdict = await _grade_any(grader, question, text)
        except RequestFailed:
            if any(each.outcome is Outcome.UNKNOWN for each in passed):
                break  # the judge was the fallback of a failed grader: keep that failure
            raise
        if verdict is not None and verdict.decisive:
            return verdict.grade
        if verdict is not None:
            passed.append(verdict.grade)
    if passed:
        return ([each for each in passed if each.outcome is Outcome.UNKNOWN] or passed)[-1]
    kinds = " and ".join(grader.kind for grader in graders)
    return unknown(kinds, None, f"reference {brief(question.ground_truth)} cannot be graded with {kinds}").grade


async def _grade_any(grader: Grader, question: Question, text: str) -> Verdict | None:
    """Grade against the reference and, if words or numbers differ from it, against its aliases."""
    verdict = await grader(question, text)
    for alias in question.aliases if grader.kind in ("exact", "contains", "number") else ():
        if verdict is None or verdict.grade.outcome is not Outcome.RIGHT:
            other = await grader(replace(question, ground_truth=alias), text)
            verdict = other if other is not None and other.grade.outcome is Outcome.RIGHT else verdict
    return verdict


def graders_for(spec: EvaluatorSpec, judge: Grader | None) -> tuple[Grader, ...]:
    """Return the graders a config names, in its order. Raises `GradingError` if it names `llm` without a `judge`."""
    if "llm" in spec.kind and judge is None:
        raise GradingError("kind 'llm' needs a judge; none was given")
    return tuple(judge if kind == "llm" and judge is not None else objective_grader(kind, spec) for kind in spec.kind)


def objective_grader(kind: GraderKind, spec: EvaluatorSpec) -> "ObjectiveGrader":
    """Return the grader of a kind that asks no model."""
    return GRADERS[kind](spec)


class ObjectiveGrader(ABC):
    """A grader that asks no model. It checks itself and the references before any model is asked."""

    kind: ClassVar[GraderKind]
    refuses: ClassVar[str]
    """Reason why a reference cannot be used, as the end of a sentence that begins `the reference`."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self.timeout_s = spec.grader_timeout_s

    def check(self, example: Question | None) -> None:  # noqa: B027 - most have nothing to check
        """Raise `GradingError` if the grader itself does not work; `example` is a question to try, if there is one."""

    @abstractmethod
    def accepts(self, question: Question) -> "bool | Future[bool]":
        """Whether the grader can use the reference; a grader process may have to find out."""

    @abstractmethod
    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Grade a reply, as `Grader` says."""


class _TextGrader(ObjectiveGrader):
    refuses = "is empty"

    def accepts(self, question: Question) -> bool:
        return bool(_text_reference(question.ground_truth))


class ExactGrader(_TextGrader):
    """Compare as texts; a miss is wrong unless a later grader decides."""

    kind = "exact"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Compare the marked answer, or its first sentence, or an unmarked reply that is nothing but the answer."""
        target = _text_reference(question.ground_truth)
        answer = final_answer(text)
        if answer is None:
            whole = clean(text)
            return right(self.kind, whole, question) if _is_same_text(whole, target) else unanswered(self.kind)
        if _is_same_text(answer, target) or _is_same_text(answer.partition(". ")[0], target):
            return right(self.kind, answer, question)
        return wrong(self.kind, answer, question, decisive=False)


class ContainsGrader(_TextGrader):
    """Look for the reference in the answer, for models that chat; a miss is wrong unless a later grader decides."""

    kind = "contains"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Search the marked answer, or the whole reply if none is marked."""
        if not _text_reference(question.ground_truth):
            return None
        answer = final_answer(text)
        scope = normalised(text if answer is None else answer).replace("**", "")
        if not scope:
            return unanswered(self.kind)
        for spelling in _spellings(question.ground_truth):
            if stands_in(spelling, scope):
                return right(self.kind, answer or spelling, question)
        return wrong(self.kind, answer or "", question, decisive=False)


class NumberGrader(ObjectiveGrader):
    """Compare as numbers, exactly; the two readings of `50%` or `2 million` both count.

    A reference that is an expression, `5!` or `3x`, is compared as mathematics.
    """

    kind = "number"
    refuses = "is not a number"

    def accepts(self, question: Question) -> "bool | Future[bool]":
        """Accept one number, in words or digits, with a unit; or one expression."""
        if _number_reference(question.ground_truth) is not None:
            return True
        return _has_digit(question) and submit(
            is_expression, math_reference(question.ground_truth), question.question, timeout_s=self.timeout_s
        )

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        target = _number_reference(question.ground_truth)
        if target is None and not _has_digit(question):
            return None
        if target is None:
            return await compare_as_mathematics(self.kind, question, text, self.timeout_s)
        read = read_number(text)
        if read is None:
            return unanswered(self.kind)
        if read.quantity is None:
            return unread(self.kind, read.answer, "it is not one number")
        return (right if equal(read.quantity, target) else wrong)(self.kind, read.answer, question)


class ChoiceGrader(ObjectiveGrader):
    """Compare letters; a choice's own words stand for its letter."""

    kind = "choice"
    refuses = "is neither a letter nor the text of one of its choices"

    def accepts(self, question: Question) -> bool:
        return _choice_reference(question.ground_truth, question.choices) is not None

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        target = _choice_reference(question.ground_truth, question.choices)
        if target is None:
            return None
        read = read_choice(text, question.choices)
        if read is None:
            return unanswered(self.kind)
        if read.letter is None:
            return unread(self.kind, read.answer, "it names no single choice")
        return (right if read.letter == target else wrong)(self.kind, read.answer, question)


class MathGrader(ObjectiveGrader):
    """Compare as mathematics, in a process that can be killed."""

    kind = "math"
    refuses = "is not mathematics that can be read whole"

    def accepts(self, question: Question) -> "bool | Future[bool]":
        """Accept a reference that can be read whole as mathematics within an answer's time limit."""
        reference, given = math_reference(question.ground_truth), question.ground_truth
        if plain_number(reference) is not None:
            return True
        return submit(is_mathematics, reference, question.question, "\\text" in given, timeout_s=self.timeout_s)

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        return await compare_as_mathematics(self.kind, question, text, self.timeout_s)


class PythonGrader(ObjectiveGrader):
    """A user's `module:function`, called with (question, ground_truth, reply) in a process that can be killed."""

    kind = "python"
    refuses = "is refused"

    def __init__(self, spec: EvaluatorSpec) -> None:
        super().__init__(spec)
        if spec.function is None:
            raise GradingError("kind 'python' needs [evaluator] function = \"module:function\"")
        self.function = spec.function

    def check(self, example: Question | None) -> None:
        """Import the function where it will run, and have it grade the reference answer as if a model had given it."""
        named = f"[evaluator] function = {self.function!r}"
        try:
            submit(check_function, self.function, timeout_s=START_LIMIT_S).result()
        except CallFailed as failure:
            raise GradingError(
                f"{named} cannot be imported: {failure}; "
                "it must be a function in a module on the Python path, or in a file beside the config"
            ) from None
        if example is None:
            return
        truth = example.ground_truth
        try:
            submit(call_function, self.function, example.question, truth, truth, timeout_s=self.timeout_s).result()
        except CallFailed as failure:
            raise GradingError(
                f"{named} fails on question {example.question_id!r} with its own reference {brief(truth)} as the "
                f"answer: {failure}; it is called with (question, ground_truth, answer) and must not raise"
            ) from None

    def accepts(self, question: Question) -> bool:  # noqa: ARG002 - only the function can tell
        return True

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Take the returned number as the score, right above one half; None or an exception is an unknown grade."""
        answer = final_answer(text)
        arguments = (self.function, question.question, question.ground_truth, text)
        try:
            score = await run_in_pool(call_function, *arguments, timeout_s=self.timeout_s)
        except CallFailed as failure:
            return unknown(self.kind, answer, f"{self.function}: {failure}")
        if score is None:
            return unknown(self.kind, answer, f"{self.function} returned None")
        matches = (answer,) if answer is not None and score > 0.5 else ()
        scores = Evaluation(score, score, (f"python: {self.function} gave {score:g}",), matches, score)
        return Verdict(Grade(Outcome.RIGHT if score > 0.5 else Outcome.WRONG, answer, self.kind, scores), decisive=True)


GRADERS: Mapping[GraderKind, type[ObjectiveGrader]] = {
    grader.kind: grader
    for grader in (ExactGrader, ContainsGrader, NumberGrader, MathGrader, ChoiceGrader, PythonGrader)
}
"""Class of each kind, except the judge's kind `llm`."""


# References, as each kind reads them.


@lru_cache(maxsize=8192)
def _text_reference(reference: str) -> str:
    """Return a reference normalised for comparison; one of punctuation alone keeps it."""
    return normalised(reference) or reference.strip().casefold()


def _is_same_text(answer: str, target: str) -> bool:
    said = normalised(answer)
    truth = is_true_or_false(target)
    return said == target or (truth is not None and is_true_or_false(said) is truth)


@lru_cache(maxsize=8192)
def _spellings(reference: str) -> tuple[str, ...]:
    """Return the texts that `contains` looks for: the reference, and a whole number with and without its commas."""
    number, text = parse_quantity(reference), _text_reference(reference)
    if number is None or number.value.denominator != 1 or number.scale != 1:
        return (text,)
    return tuple(dict.fromkeys((text, str(number.value), f"{int(number.value):,}")))


def _has_digit(question: Question) -> bool:
    return any(map(str.isdigit, question.ground_truth))


@lru_cache(maxsize=8192)
def _number_reference(reference: str) -> Quantity | None:
    """Return the number that a reference is, also after a `####` or in a box; None for anything else, such as `5!`."""
    text = clean(reference.rpartition("####")[2])
    return None if text.endswith("!") else parse_quantity(text)


@lru_cache(maxsize=8192)
def _choice_reference(reference: str, choices: tuple[str, ...]) -> str | None:
    """Return the letter of a reference, which may be written as the choice's own text."""
    return parse_choice(clean(reference), choices)
