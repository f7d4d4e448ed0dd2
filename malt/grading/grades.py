"""Outcome and Grade: what graders say of one answer, and the words they say it in."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from malt.questions.question import Question
from malt.text import shorten


class Outcome(StrEnum):
    """What became of one answer."""

    RIGHT = "right"
    WRONG = "wrong"
    """The answer is not the reference, or no grader could read the whole of it: `Grade.is_unread` tells them apart."""
    UNANSWERED = "unanswered"
    """No answer could be found; counts as wrong."""
    TRUNCATED = "truncated"
    """Cut off at max_tokens; counts as `[credit] truncated` says."""
    UNKNOWN = "unknown"
    """The grader failed: it timed out, crashed, or could not be read. Never counts as wrong."""

    @property
    def truth(self) -> bool | None:
        """Whether the answer is right; None where nobody knows."""
        return None if self in {Outcome.TRUNCATED, Outcome.UNKNOWN} else self is Outcome.RIGHT


_UNREAD = "unread: "
"""Begins the explanation of a wrong answer of which a part was not understood."""
_DISPUTED = "disputed: "
"""Begins the line of an explanation that says that two ways of comparing disagree."""


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

    @property
    def is_unread(self) -> bool:
        """Whether the answer is wrong because no grader could read the whole of it."""
        return self._says(_UNREAD)

    @property
    def is_disputed(self) -> bool:
        """Whether two ways of comparing the answer disagree."""
        return self._says(_DISPUTED)

    def _says(self, beginning: str) -> bool:
        return self.evaluation is not None and any(line.startswith(beginning) for line in self.evaluation.explanation)


class Verdict(NamedTuple):
    """One grader's word: its grade, and whether the graders after it are asked no more."""

    grade: Grade
    decisive: bool


_LONGEST_KEPT = 1000
"""Characters of an answer that a grade keeps."""


def right(kind: str, answer: str, question: Question) -> Verdict:
    return _verdict(Outcome.RIGHT, kind, answer, _compared(kind, answer, question), decisive=True)


def wrong(kind: str, answer: str, question: Question, *, decisive: bool = True) -> Verdict:
    """A wrong answer, or a miss that other graders may see otherwise."""
    return _verdict(Outcome.WRONG, kind, answer, _compared(kind, answer, question), decisive=decisive)


def unread(kind: str, answer: str, why: str) -> Verdict:
    """An answer of which a part was not understood: another grader may read it."""
    return _verdict(Outcome.WRONG, kind, answer, f"{_UNREAD}{kind} cannot read {brief(answer)} whole: {why}")


def disputed(kind: str, answer: str, question: Question, why: str) -> Verdict:
    """Two ways of comparing disagree, and neither is believed: no reward, unless another grader decides."""
    return _verdict(Outcome.WRONG, kind, answer, _compared(kind, answer, question), _DISPUTED + why)


def unanswered(kind: str) -> Verdict:
    """No answer was found; a grader that needs no marked answer may find one."""
    return _verdict(Outcome.UNANSWERED, kind, None, f"{kind}: no answer was found")


def unknown(kind: str, answer: str | None, why: str) -> Verdict:
    kept = answer and shorten(answer, _LONGEST_KEPT)
    return Verdict(Grade(Outcome.UNKNOWN, kept, kind, None, f"{kind}: {why}"), decisive=False)


def _verdict(outcome: Outcome, kind: str, answer: str | None, *said: str, decisive: bool = False) -> Verdict:
    kept = answer and shorten(answer, _LONGEST_KEPT)
    score, matches = (1.0, (kept or "",)) if outcome is Outcome.RIGHT else (0.0, ())
    return Verdict(Grade(outcome, kept, kind, Evaluation(score, score, said, matches, score)), decisive)


def truncated_grade() -> Grade:
    """Return the grade of a reply that was cut off at max_tokens: no grader sees it."""
    why = "cut off at max_tokens: not a finished answer"
    return Grade(Outcome.TRUNCATED, None, "none", Evaluation(0.0, 0.0, (why,)))


def brief(text: str) -> str:
    return repr(shorten(text, 80))


def _compared(kind: str, answer: str, question: Question) -> str:
    return f"{kind}: read {brief(answer)}, expected {brief(question.ground_truth)}"
