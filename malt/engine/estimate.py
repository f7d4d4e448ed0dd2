"""Estimates: what completions that are still to be bought will take, as ranges. Seen ones say it best; else what is
assumed is said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import stdev
from typing import NamedTuple

from malt.llm.request import Completion

_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
"""Quantiles of Student's t for a two-sided 95 % range, by degrees of freedom from 1; beyond them 2.09 down to 1.96."""


class Range(NamedTuple):
    """A quantity as it may come out: 95 % of runs should lie between the ends."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(*(part * factor for part in self))

    def plus(self, other: "Range") -> "Range":
        """Add up end by end, as if all came out low, or high, together."""
        return Range(*(mine + its for mine, its in zip(self, other, strict=True)))

    def shared(self, share: "Range") -> "Range":
        return Range(*(mine * its for mine, its in zip(self, share, strict=True)))

    def at_most(self, limit: float) -> "Range":
        return Range(*(min(part, limit) for part in self))


NOTHING = Range(0, 0, 0)

_CHARACTERS_PER_TOKEN = Range(5, 4, 3)
"""What is assumed of a prompt, as English prose and code are."""
SHARE_OF_MAX_TOKENS = Range(1 / 8, 1 / 2, 1)
"""What is assumed of a completion."""


@dataclass
class Seen:
    """What one question's completions in one role took."""

    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """None as soon as one completion's cost is unknown."""

    def add(self, completion: Completion) -> None:
        self.completions += 1
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0
        known = self.cost_usd is not None and completion.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (completion.cost_usd or 0.0) if known else None


class Total(NamedTuple):
    """One question's total of something, and how many completions took it."""

    amount: float
    completions: int


def each_takes(totals: Sequence[Total], questions: int) -> Range:
    """Return what a completion takes on average over `questions` further ones, judging by those that were seen.

    A prediction interval for the mean: questions differ, and completions of one question are alike, so it goes by the
    questions' means. A single question says little: half to twice of what it took.
    """
    mean = sum(total.amount for total in totals) / sum(total.completions for total in totals)
    if len(totals) == 1:
        return Range(mean / 2, mean, mean * 2)
    spread = stdev(total.amount / total.completions for total in totals)
    half = student_t(len(totals) - 1) * spread * sqrt(1 / len(totals) + 1 / max(1, questions))
    return Range(max(0.0, mean - half), mean, mean + half)


def student_t(freedom: int) -> float:
    """Return the quantile for a two-sided 95 % range."""
    return _T_95[freedom - 1] if freedom <= len(_T_95) else 1.96 + 2.5 / freedom


def tokens_of(characters: float) -> Range:
    """Return the tokens that a prompt of so many characters is assumed to have."""
    return Range(*(characters / each for each in _CHARACTERS_PER_TOKEN))


def rounded(amount: Range) -> tuple[int, int, int]:
    return int(amount.low), round(amount.expected), ceil(amount.high)


def total_of(ranges: Iterable[Range]) -> Range:
    total = NOTHING
    for each in ranges:
        total = total.plus(each)
    return total
