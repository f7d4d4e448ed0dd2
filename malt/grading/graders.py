"""Outcome and Grade: what graders say of one answer. Graders form a cascade: each decides, or passes the answer on.

| kind | decides | passes on |
|---|---|---|
| `exact` | the texts are equal but for case, space, markup and surrounding punctuation | a miss |
| `contains` | the reference stands in the answer (in the whole reply if none is marked) as whole words | a miss |
| `number` | both sides are numbers | what cannot be read as one |
| `math` | math-verify finds them equal, or both are mathematics without words and differ | words, nothing readable |
| `choice` | the answer names one of the choices | what names none |
| `python` | a score was returned | None |
| `llm` | the judge's reply can be read | |

What is passed on to nobody is wrong (`unanswered` where nothing could be read), unless a grader of the cascade failed
(time limit, crash, unreadable judge): then it is unknown. Grades are not stored, only the judge's replies are: a rerun
grades all answers again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from malt.config.spec import EvaluatorSpec, GraderKind
from malt.errors import GradingError
from malt.grading.answers import clean, final_answer, normalised, read_choice, read_number
from malt.grading.math_worker import MathVerdict, call_function, compare_math
from malt.grading.numbers import equal
from malt.grading.process_pool import CallFailed, run_in_pool
from malt.grading.references import check_references as check_references
from malt.grading.references import choice_reference, is_whole, number_reference, spellings, stands_in, text_reference
from malt.llm.request import RequestFailed
from malt.questions.question import Question


class Outcome(StrEnum):
    """What became of one answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNANSWERED = "unanswered"
    """No answer could be read; counts as wrong."""
    TRUNCATED = "truncated"
    """Cut off at max_tokens; counts as `[credit] truncated` says."""
    UNKNOWN = "unknown"
    """The grader failed: it timed out, crashed, or could not be read. Never counts as wrong."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores in [0, 1] and their grounds. An objective grader gives both scores the value of its one verdict."""

    correctness_score: float
    reasoning_score: float
    explanation: tuple[str, ...] = ()
    key_matches: tuple[str, ...] = ()
    score: float = 0.0
    """Weighted mean of the scores; the leaf's reward."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader made of one answer; `evaluation` is None exactly where the outcome is unknown."""

    outcome: Outcome
    answer: str | None
    """The final answer that was read from the text."""
    grader: str
    """The kind that decided."""
    evaluation: Evaluation | None
    error: str | None = None
    """Why the outcome is unknown."""

    @property
    def reward(self) -> float | None:
        """The leaf's reward in [0, 1], or None where it is unknown."""
        return None if self.evaluation is None else self.evaluation.score


class Verdict(NamedTuple):
    """One grader's word: its grade, and whether the graders after it are asked no more."""

    grade: Grade
    decisive: bool


class Grader(Protocol):
    """A way of grading: one of the kinds, or the judge."""

    @property
    def kind(self) -> str:
        """Its name in `[evaluator] kind`."""
        ...

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Grade a reply; None where the reference answer is of no use to this grader.

        A failure is a verdict with an unknown grade, which is never decisive. Raises `RequestFailed` or `RunStopped`
        where a judge cannot be asked.
        """
        ...


async def grade(question: Question, text: str, graders: Sequence[Grader]) -> Grade:
    """Grade a reply with the first of the graders that can decide; see the module for what holds if none can."""
    passed: list[Grade] = []
    for grader in graders:
        try:
            verdict = await grader(question, text)
        except RequestFailed:
            if any(each.outcome is Outcome.UNKNOWN for each in passed):
                break  # the judge was not wanted before, and is not to be had: the failure before it stands
            raise
        if verdict is not None and verdict.decisive:
            return verdict.grade
        if verdict is not None:
            passed.append(verdict.grade)
    failed = [each for each in passed if each.outcome is Outcome.UNKNOWN]
    if failed or passed:
        return failed[-1] if failed else passed[-1]
    kinds = " and ".join(grader.kind for grader in graders)
    return unknown(kinds, None, f"reference {brief(question.ground_truth)} cannot be graded with {kinds}").grade


def truncated_grade() -> Grade:
    """Return the grade of a reply that was cut off at max_tokens: no grader sees it."""
    why = "cut off at max_tokens: not a finished answer"
    return Grade(Outcome.TRUNCATED, None, "none", Evaluation(0.0, 0.0, (why,)))


def graders_for(spec: EvaluatorSpec, judge: Grader | None) -> tuple[Grader, ...]:
    """Return the graders a config names, in its order. Raises `GradingError` where it names `llm` and none is given."""
    if "llm" in spec.kind and judge is None:
        raise GradingError("kind 'llm' needs a judge; none was given")
    return tuple(judge if kind == "llm" and judge is not None else objective_grader(kind, spec) for kind in spec.kind)


def objective_grader(kind: GraderKind, spec: EvaluatorSpec) -> Grader:
    """Return the grader of a kind that asks no model."""
    match kind:
        case "exact":
            return ExactGrader()
        case "contains":
            return ContainsGrader()
        case "number":
            return NumberGrader()
        case "choice":
            return ChoiceGrader()
        case "math":
            return MathGrader(spec.grader_timeout_s)
        case "python" if spec.function is not None:
            return PythonGrader(spec.function, spec.grader_timeout_s)
    raise GradingError(f"kind {kind!r} is no objective grader")


class ExactGrader:
    """Equal texts are right; a miss is wrong, and another grader may see more in it."""

    kind = "exact"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Compare the marked answer, or its first sentence, or an unmarked reply that is nothing but the answer."""
        target = text_reference(question.ground_truth)
        answer = final_answer(text)
        if answer is None:
            return right(self.kind, clean(text), question) if normalised(text) == target else unanswered(self.kind)
        if target in (normalised(answer), normalised(answer.partition(". ")[0])):
            return right(self.kind, answer, question)
        return wrong(self.kind, answer, question, decisive=False)


class ContainsGrader:
    """A reference that stands in the answer is right, for models that chat; a miss may be seen otherwise by others."""

    kind = "contains"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Look through the marked answer, or through the whole reply where none is marked."""
        answer = final_answer(text)
        if not text_reference(question.ground_truth):
            return None
        scope = normalised(text if answer is None else answer).replace("**", "")
        if not scope:
            return unanswered(self.kind)
        for spelling in spellings(question.ground_truth):
            if stands_in(spelling, scope):
                return right(self.kind, answer or spelling, question)
        return wrong(self.kind, answer, question, decisive=False)


class NumberGrader:
    """Compare as numbers, exactly; the two readings of `50%` or `2 million` both count."""

    kind = "number"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Decide both ways where both sides are numbers."""
        target = number_reference(question.ground_truth)
        if target is None:
            return None
        read = read_number(text)
        if read is None:
            return unanswered(self.kind)
        if read.quantity is None:
            return wrong(self.kind, read.answer, question, decisive=False)
        if equal(read.quantity, target):
            return right(self.kind, read.answer, question)
        return wrong(self.kind, read.answer, question, decisive=True)


class ChoiceGrader:
    """Compare letters; a choice's own words stand for its letter."""

    kind = "choice"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Decide both ways where the answer names a choice."""
        target = choice_reference(question.ground_truth, question.choices)
        if target is None:
            return None
        read = read_choice(text, question.choices)
        if read is None:
            return unanswered(self.kind)
        if read.letter == target:
            return right(self.kind, read.answer, question)
        return wrong(self.kind, read.answer, question, decisive=read.letter is not None)


@dataclass(frozen=True)
class MathGrader:
    """Compare as mathematics, with math-verify in a process that can be killed."""

    timeout_s: float
    kind = "math"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Decide without a process what plainly is equal, or is two different whole numbers."""
        target, answer = question.ground_truth, final_answer(text)
        read = (text.strip() if answer is None else answer).replace("\u2013", "-")
        if len(read) > LONGEST_MATH:
            return unknown(self.kind, None, f"an answer of {len(read):,} characters is too long to be compared")
        if not read:
            return unanswered(self.kind)
        plainly = plain_comparison(read, target)
        if plainly is not None:
            return (right if plainly else wrong)(self.kind, read, question)
        try:
            compared = await run_in_pool(compare_math, target, read, timeout_s=self.timeout_s)
        except CallFailed as failure:
            return unknown(self.kind, answer, str(failure))
        return self._verdict(compared, answer, question)

    def _verdict(self, compared: MathVerdict, answer: str | None, question: Question) -> Verdict | None:
        match compared.result:
            case "no reference":
                return None
            case "equal":
                return right(self.kind, answer or compared.read, question)
            case "different":
                return wrong(self.kind, answer or compared.read, question, decisive=compared.symbolic)
        return unanswered(self.kind) if answer is None else wrong(self.kind, answer, question, decisive=False)


@dataclass(frozen=True)
class PythonGrader:
    """A user's `module:function`, called with (question, ground_truth, reply) in a process that can be killed."""

    function: str
    timeout_s: float
    kind = "python"

    async def __call__(self, question: Question, text: str) -> Verdict | None:
        """Take what it returns as the score, right above one half; None passes on, whatever it raises is unknown."""
        answer = final_answer(text)
        arguments = (self.function, question.question, question.ground_truth, text)
        try:
            score = await run_in_pool(call_function, *arguments, timeout_s=self.timeout_s)
        except CallFailed as failure:
            return unknown(self.kind, answer, f"{self.function}: {failure}")
        if score is None:
            return unknown(self.kind, answer, f"{self.function} returned None")
        matches = (answer,) if answer is not None and score > 0.5 else ()
        said = Evaluation(score, score, (f"python: {self.function} gave {score:g}",), matches, score)
        return Verdict(Grade(Outcome.RIGHT if score > 0.5 else Outcome.WRONG, answer, self.kind, said), decisive=True)


LONGEST_MATH = 10_000
"""Characters of an answer past which mathematics is not attempted: the grade is unknown."""
LONGEST_KEPT = 1000
"""Characters of an answer that a grade keeps."""


def right(kind: str, answer: str | None, question: Question) -> Verdict:
    """A right answer always decides."""
    kept = kept_text(answer or "")
    said = Evaluation(1.0, 1.0, (compared_line(kind, kept, question),), (kept,), 1.0)
    return Verdict(Grade(Outcome.RIGHT, kept, kind, said), decisive=True)


def wrong(kind: str, answer: str | None, question: Question, decisive: bool = True) -> Verdict:
    """A wrong answer, or a miss that other graders may see otherwise."""
    kept = None if answer is None else kept_text(answer)
    said = Evaluation(0.0, 0.0, (compared_line(kind, kept, question),))
    return Verdict(Grade(Outcome.WRONG, kept, kind, said), decisive)


def unanswered(kind: str) -> Verdict:
    """No answer was found; a grader that needs no marked answer may find one."""
    said = Evaluation(0.0, 0.0, (f"{kind}: no answer was found",))
    return Verdict(Grade(Outcome.UNANSWERED, None, kind, said), decisive=False)


def unknown(kind: str, answer: str | None, why: str) -> Verdict:
    """The grader failed."""
    return Verdict(Grade(Outcome.UNKNOWN, answer and kept_text(answer), kind, None, f"{kind}: {why}"), decisive=False)


def plain_comparison(answer: str, reference: str) -> bool | None:
    """Return whether two texts plainly are the same mathematics or differ, None where that takes more than looking."""
    target_text = clean(reference)
    if answer == target_text:
        return True
    if brackets(answer) != brackets(target_text) and brackets(answer) and brackets(target_text):
        return False
    given, target = number_reference(answer), number_reference(reference)
    if given is None or target is None or "=" in reference:
        return None
    return True if equal(given, target) else False if is_whole(given) and is_whole(target) else None


PAIR = re.compile(r"(?:\\left)?([(\[])[^()\[\]]*,[^()\[\]]*?(?:\\right)?([)\]])")


def brackets(text: str) -> tuple[str, ...]:
    """Return the brackets of a single pair or interval: math-verify takes `[1,5]` for the point `(1,5)` as well."""
    match = PAIR.fullmatch(text.strip("$ "))
    return match.groups() if match else ()


def compared_line(kind: str, answer: str | None, question: Question) -> str:
    """Say in one line what was compared."""
    return f"{kind}: read {brief(answer or '')}, expected {brief(question.ground_truth)}"


def brief(text: str) -> str:
    """Quote a text, shortened."""
    return repr(text if len(text) <= 80 else text[:79] + "…")


def kept_text(answer: str) -> str:
    """Return the part of an answer that a grade keeps."""
    return answer if len(answer) <= LONGEST_KEPT else answer[: LONGEST_KEPT - 1] + "…"
