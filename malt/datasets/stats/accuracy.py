"""Accuracy: answers counted question by question, with an interval that knows that siblings are alike."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from malt.datasets.manifest import Accuracy
from malt.datasets.stats.counts import Mergeable
from malt.grading.answers import normalised
from malt.trees.uncertainty import Interval, wilson

normalise_answer = lru_cache(maxsize=4096)(normalised)
"""The answers to one question are few."""

Truth = bool | None
"""Whether an answer is right; None where nobody knows."""


class Ballot(NamedTuple):
    """One text's vote: what it answers, and whether that is right."""

    answer: str | None
    truth: Truth
    is_cast: bool = True
    """Whether it votes: not without an answer, nor where it was cut off."""


class TruthCount(Mergeable):
    """Counts answers by their truth, a question at a time."""

    def __init__(self) -> None:
        self._truths: Counter[Truth] = Counter()
        self._questions = 0
        self._right_squared = self._right_known = self._known_squared = 0

    def add(self, truths: Iterable[Truth]) -> None:
        counts = Counter(truths)
        right, known = counts[True], counts[True] + counts[False]
        self._truths.update(counts)
        self._questions += known > 0
        self._right_squared += right * right
        self._right_known += right * known
        self._known_squared += known * known

    @property
    def accuracy(self) -> Accuracy:
        right, wrong, unknown = (self._truths[truth] for truth in (True, False, None))
        if not right + wrong:
            return Accuracy(unknown=unknown)
        low, high = self._interval(right, right + wrong)
        return Accuracy(
            right=right,
            wrong=wrong,
            unknown=unknown,
            percent=round(100 * right / (right + wrong), 2),
            low=round(100 * low, 2),
            high=round(100 * high, 2),
        )

    def _interval(self, right: int, known: int) -> Interval:
        """Wilson's, over as many independent answers as would vary as much as these questions do (ratio estimator)."""
        share, questions = right / known, self._questions
        spread = self._right_squared - 2 * share * self._right_known + share * share * self._known_squared
        if questions < 2 or spread <= 0:
            return wilson(share, questions)
        variance = spread / known**2 * questions / (questions - 1)
        return wilson(share, max(1.0, min(known, share * (1 - share) / variance)))


def majority(ballots: Sequence[Ballot]) -> Truth:
    """Return whether the answer that most give is right; among equally many, the one given first.

    Right answers are one answer: all equal the reference. Wrong ones are told apart by their words, and those that
    a judge found wrong without reading an answer are one. Where all abstain, nothing was answered, which is wrong.
    """
    cast = [ballot for ballot in ballots if ballot.is_cast and (ballot.answer, ballot.truth) != (None, None)]
    if not cast:
        return any_right(ballots)
    votes = Counter(map(_choice, cast))
    chosen = max(votes, key=votes.__getitem__)
    return any_right(ballot for ballot in cast if _choice(ballot) == chosen)


def _choice(ballot: Ballot) -> tuple[bool, str]:
    return (True, "") if ballot.truth else (False, normalise_answer(ballot.answer or ""))


def any_right(ballots: Iterable[Ballot]) -> Truth:
    """Return whether one of some answers is right; None where none is known."""
    known = [ballot.truth for ballot in ballots if ballot.truth is not None]
    return any(known) if known else None
