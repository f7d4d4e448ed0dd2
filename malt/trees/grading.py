"""Outcome and Grade: what a grader says of one answer."""

from dataclasses import dataclass
from enum import StrEnum


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
