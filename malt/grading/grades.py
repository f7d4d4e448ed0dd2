"""Outcome and Grade of one answer, and the verdicts that graders return with their explanations."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from malt.questions.question import Question
from malt.text import shorten


class Outcome(StrEnum):
    """Outcome of grading one answer."""

    RIGHT = "right"
    WRONG = "wrong"
    """The answer is not the reference, or no grader could read the whole of it (see `Grade.is_unread`)."""
    UNANSWERED = "unanswered"
    """No answer could be found; counts as wrong."""
    TRUNCATED = "truncated"
    """Cut off at max_tokens; counts as `[credit] truncated` says."""
    UNKNOWN = "unknown"
    """The grader failed: it timed out, crashed, or gave an unreadable reply. Never counts as wrong."""

    @property
    def truth(self) -> bool | None:
        """Whether the answer is right; None if that is unknown."""
        return None if self in {Outcome.TRUNCATED, Outcome.UNKNOWN} else self is Outcome.RIGHT


_UNREAD = "unread: "
"""Prefix of the explanation of a wrong answer of which a part was not understood."""
_DISPUTED = "disputed: "
"""Prefix of the line of an explanation that says that two ways of comparing disagree."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores in [0, 1] and the reasons for them. An objective grader gives both scores the value of its one verdict."""

    correctness_score: float
    reasoning_score: float
    explanation: tuple[str, ...] = ()
    key_matches: tuple[str, ...] = ()
    score: float = 0.0
    """Weighted mean of the scores; the leaf's reward."""


@dataclass(frozen=True, slots=True)
class Grade:
    """Grade of one answer; `evaluation` is None exactly if the outcome is unknown."""

    outcome: Outcome
    answer: str | None
    """Final answer that was read from the reply."""
    grader: str
    """Kind of the grader that decided."""
    evaluation: Evaluation | None
    error: str | None = None
    """Reason why the outcome is unknown."""

    @property
    def reward(self) -> float | None:
        """The leaf's reward in [0, 1], or None where it is unknown."""
        return None if self.evaluation is None else self.evaluation.score

    @property
    def is_unread(self) -> bool:
        """Whether the answer is wrong because no grader could read the whole of it."""
        return self._is_explained_by(_UNREAD)

    @property
    def is_disputed(self) -> bool:
        """Whether two ways of comparing the answer disagree."""
        return self._is_explained_by(_DISPUTED)

    def _is_explained_by(self, prefix: str) -> bool:
        return self.evaluation is not None and any(line.startswith(prefix) for line in self.evaluation.explanation)


class Verdict(NamedTuple):
    """Grade by one grader; if it is `decisive`, later graders of the cascade are not called."""

    grade: Grade
    decisive: bool


_LONGEST_KEPT = 1000
"""Most characters of an answer that a grade keeps."""


def right(kind: str, answer: str, question: Question) -> Verdict:
    return _verdict(Outcome.RIGHT, kind, answer, _compared(kind, answer, question), decisive=True)


def wrong(kind: str, answer: str, question: Question, *, decisive: bool = True) -> Verdict:
    """Return the verdict on a wrong answer; a later grader may overrule one that is not `decisive`."""
    return _verdict(Outcome.WRONG, kind, answer, _compared(kind, answer, question), decisive=decisive)


def unread(kind: str, answer: str, why: str) -> Verdict:
    """Return the verdict on an answer of which a part was not understood; a later grader may read it."""
    return _verdict(Outcome.WRONG, kind, answer, f"{_UNREAD}{kind} cannot read {brief(answer)} whole: {why}")


def disputed(kind: str, answer: str, question: Question, why: str) -> Verdict:
    """Return the verdict where two ways of comparing disagree: wrong, unless a later grader decides."""
    return _verdict(Outcome.WRONG, kind, answer, _compared(kind, answer, question), _DISPUTED + why)


def unanswered(kind: str) -> Verdict:
    """Return the verdict on a reply without an answer; a later grader that needs no mark may find one."""
    return _verdict(Outcome.UNANSWERED, kind, None, f"{kind}: no answer was found")


def unknown(kind: str, answer: str | None, why: str) -> Verdict:
    kept = answer and shorten(answer, _LONGEST_KEPT)
    return Verdict(Grade(Outcome.UNKNOWN, kept, kind, None, f"{kind}: {why}"), decisive=False)


def _verdict(outcome: Outcome, kind: str, answer: str | None, *explanation: str, decisive: bool = False) -> Verdict:
    kept = answer and shorten(answer, _LONGEST_KEPT)
    score, matches = (1.0, (kept or "",)) if outcome is Outcome.RIGHT else (0.0, ())
    return Verdict(Grade(outcome, kept, kind, Evaluation(score, score, explanation, matches, score)), decisive)


def truncated_grade() -> Grade:
    """Return the grade of a reply that was cut off at max_tokens: no grader sees it."""
    why = "cut off at max_tokens: not a finished answer"
    return Grade(Outcome.TRUNCATED, None, "none", Evaluation(0.0, 0.0, (why,)))


def brief(text: str) -> str:
    return repr(shorten(text, 80))


def _compared(kind: str, answer: str, question: Question) -> str:
    return f"{kind}: read {brief(answer)}, expected {brief(question.ground_truth)}"
