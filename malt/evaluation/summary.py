"""Summary: what an evaluation's answers say, worked out of its table alone, so that anybody can work it out again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from malt.datasets.accuracy import Ballot, Truth, majority
from malt.datasets.diagnostics import NO_ANSWER, is_same
from malt.datasets.manifest import Recorded
from malt.evaluation import statistics
from malt.evaluation.statistics import Scores
from malt.trees.grading import Outcome

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["sa", "sa_mv", "ma", "ma_mv"]
MEASURES: tuple[Measure, ...] = ("sa", "sa_mv", "ma", "ma_mv")
TITLES: Mapping[str, str] = {
    "sa": "single agent",
    "sa_mv": "single agent, vote",
    "ma": "pipeline",
    "ma_mv": "pipeline, vote",
}

Grid = NDArray[Any]
"""A value by question, seed and chain."""


class Cell(Recorded):
    """How often one way of answering is right."""

    accuracy: float | None
    """Share of right answers, over the questions of which that is known; None where there are none."""
    stderr: float | None
    """Over questions: answers to one question count as one cluster."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    questions: int


class Compared(Recorded):
    """What a system has over the baseline, paired by question."""

    difference: float
    low: float
    """Lower end of the 95 % interval: a bootstrap over questions."""
    high: float
    p: float
    """McNemar's exact test for votes, else a t-test of the differences."""
    p_holm: float
    """Corrected for how many systems are compared."""
    questions: int


class Usage(Recorded):
    """What answers took; None where a provider told less."""

    tokens: int | None
    """Prompt and completion together."""
    completion_tokens: int | None
    cost_usd: float | None
    seconds: float
    """Of requests one after another."""
    tokens_per_question: float | None
    cost_per_question: float | None
    seconds_per_question: float
    tokens_per_right: float | None
    """A right answer, of single ones; None where none is right."""
    cost_per_right: float | None
    seconds_per_right: float | None


class Flips(Recorded):
    """Chains by what the generator's answer was and what the final one is."""

    wrong_to_right: int
    right_to_right: int
    wrong_to_wrong: int
    right_to_wrong: int
    unchanged: float | None
    """Share of final answers that repeat the generator's, of those where both give one."""


class Refining(Recorded):
    """Whether critique and refinement pay (arXiv 2604.22273)."""

    ecr: float | None
    """Errors corrected: share of wrong generations that end right."""
    eir: float | None
    """Errors introduced: share of right generations that end wrong."""
    threshold: float | None
    """Acc/(1 - Acc) of the generator: ECR/EIR must be above it."""
    pays: bool | None
    sentence: str


class Verdicts(Recorded):
    """The verifier's stated verdicts against the truth of the answers below them."""

    stated: int
    unstated: int
    sensitivity: float | None
    """Share of wrong answers that are called wrong."""
    specificity: float | None
    """Share of right answers that are called correct."""
    agreement: float | None
    """Share of verdicts that are true."""


class EqualTokens(Recorded):
    """A single agent whose votes are as many as it takes to write as much as the pipeline does."""

    votes: int
    vote: Cell
    completion_tokens: int | None
    pipeline_completion_tokens: int | None
    pipeline_ahead: Compared | None
    """The pipeline's vote less this one."""


class Control(Recorded):
    """One chain a question at another temperature."""

    temperature: float
    sa: Cell
    ma: Cell


class SystemSummary(Recorded):
    """One system."""

    sa: Cell
    sa_mv: Cell
    ma: Cell
    ma_mv: Cell
    tokens: int | None
    """Of all its chains; the judge's are no part of them."""
    cost_usd: float | None
    single: Usage
    """The generator's part."""
    pipeline: Usage
    flips: Flips
    refining: Refining
    verdicts: Verdicts
    by_seed: dict[str, dict[str, float | None]]
    """Accuracies of each repeat, by seed and measure."""
    equal_tokens: EqualTokens | None = None
    control: Control | None = None


class Summary(Recorded):
    """An evaluation in figures."""

    evaluation: str
    questions: int
    chains: int
    seeds: tuple[int, ...]
    baseline: str
    measure: Measure
    systems: dict[str, SystemSummary]
    differences: dict[str, Compared]
    """Of `measure`, by system."""
    all_differences: dict[str, dict[str, Compared]]
    """By measure, then by system."""
    smallest_difference: dict[str, float | None]
    """What these questions show with 80 % power: at 20 % discordant votes, and at each system's own."""


@dataclass(frozen=True)
class Sheet:
    """One system's answers of one kind as grids."""

    rows: "pd.DataFrame"
    questions: Sequence[str]
    seeds: Sequence[int | None]
    chains: int
    truncated: Truth
    """What a text that was cut off counts as."""

    def grid(self, column: str) -> Grid:
        """Return a column's values; None where there is no answer."""
        values = np.full((len(self.questions), len(self.seeds), self.chains), None, dtype=object)
        places = {question: place for place, question in enumerate(self.questions)}
        seeds = {seed: place for place, seed in enumerate(self.seeds)}
        for question, seed, chain, value in zip(
            self.rows["question_id"], self.rows["seed"], self.rows["chain"], self.rows[column], strict=True
        ):
            values[places[question], seeds[seed], chain] = value
        return values

    @cached_property
    def single(self) -> Grid:
        """Whether the generator's answers are right."""
        return self._truths("generator_outcome")

    @cached_property
    def final(self) -> Grid:
        """Whether the chains' final answers are right."""
        return self._truths("outcome")

    def scores(self, measure: Measure) -> Scores:
        """Return a number a question: the share of its answers, or votes, that are right."""
        return shares(self.by_seed(measure))

    def by_seed(self, measure: Measure) -> Grid:
        """Return whether answers, or votes, are right, by question, seed and chain."""
        truths = self.single if measure.startswith("sa") else self.final
        if not measure.endswith("_mv"):
            return truths
        outcome, answer = ("generator_outcome", "generator_answer") if measure == "sa_mv" else ("outcome", "answer")
        return self._votes(self.grid(outcome), self.grid(answer), truths)

    def _truths(self, column: str) -> Grid:
        known = {
            Outcome.RIGHT: True,
            Outcome.WRONG: False,
            Outcome.UNANSWERED: False,
            Outcome.TRUNCATED: self.truncated,
        }
        outcomes = self.grid(column)
        truths = [None if outcome is None else known.get(Outcome(outcome)) for outcome in outcomes.flat]
        return np.array([*truths, None], dtype=object)[:-1].reshape(outcomes.shape)

    def _votes(self, outcomes: Grid, answers: Grid, truths: Grid) -> Grid:
        """Vote over the chains of each question and seed; a tie goes to the answer given first."""
        votes = np.full((*outcomes.shape[:2], 1), None, dtype=object)
        for place in np.ndindex(outcomes.shape[:2]):
            votes[place][0] = majority(
                [
                    Ballot(answer, truth, cast=outcome is not None and Outcome(outcome) not in NO_ANSWER)
                    for outcome, answer, truth in zip(outcomes[place], answers[place], truths[place], strict=True)
                ]
            )
        return votes


def shares(truths: Grid) -> Scores:
    """Return the share of each question's known truths that are right; nan where none is known."""
    known = np.array([[truth is not None for truth in row] for row in truths.reshape(len(truths), -1)], dtype=float)
    right = np.array([[truth is True for truth in row] for row in truths.reshape(len(truths), -1)], dtype=float)
    counted = known.reshape(len(truths), -1).sum(axis=1)
    with np.errstate(invalid="ignore"):
        found: Scores = right.reshape(len(truths), -1).sum(axis=1) / counted
    return found
