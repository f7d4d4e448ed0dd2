"""Agreement: how far two graders say the same of the same answers, and how much of that is more than chance."""

from collections import Counter
from typing import NamedTuple

from malt.grading.grades import Outcome

_VERDICTS = {Outcome.RIGHT: True, Outcome.WRONG: False, Outcome.UNANSWERED: False}

VerdictPairs = Counter[tuple[bool | None, bool | None]]
"""Answers by what two graders say of them: right, wrong, or None where one does not know."""


class Agreement(NamedTuple):
    """What two graders have in common."""

    compared: int
    """Answers on which both have a verdict."""
    unknown: int
    """Answers left out because one of them has none."""
    agreement: float | None
    """Share of the compared answers with the same verdict; None where there are none."""
    kappa: float | None
    """Cohen's kappa (Cohen 1960); None where chance alone agrees on everything, so that it says nothing."""


def read_verdict(outcome: Outcome) -> bool | None:
    """Return whether an outcome says right; None for neither. An answer that is not there is wrong."""
    return _VERDICTS.get(outcome)


def measure_agreement(verdicts: VerdictPairs) -> Agreement:
    """Work out agreement and kappa from counts."""
    both, first, second, neither = (
        verdicts[pair] for pair in [(True, True), (True, False), (False, True), (False, False)]
    )
    compared = both + first + second + neither
    by_chance = (both + first) * (both + second) + (second + neither) * (first + neither)
    beyond = compared**2 - by_chance
    return Agreement(
        compared=compared,
        unknown=verdicts.total() - compared,
        agreement=(both + neither) / compared if compared else None,
        kappa=(compared * (both + neither) - by_chance) / beyond if beyond else None,
    )
