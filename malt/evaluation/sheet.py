"""Sheets: one system's answers as grids by question, seed and chain, and what is right in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from malt.config.spec import RunSpec
from malt.datasets.stats.diagnostics import Ballot, Truth, majority
from malt.evaluation.statistics import Scores
from malt.evaluation.summary import Measure
from malt.evaluation.systems import require_evaluate
from malt.grading.grades import Outcome

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWER = {None, Outcome.UNANSWERED, Outcome.TRUNCATED}
"""What gives no vote."""

Grid = NDArray[Any]
"""A value by question, seed and chain."""


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
                    Ballot(answer, truth, is_cast=outcome not in NO_ANSWER)
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


def make_sheets(spec: RunSpec, rows: "pd.DataFrame", kind: str) -> dict[str, Sheet]:
    """Return the answers of one kind by system, in the order of the rows."""
    truncated: Truth = False if spec.credit.truncated == "wrong" else None
    questions = list(dict.fromkeys(rows["question_id"]))
    seeds: Sequence[int | None] = require_evaluate(spec).seeds or (None,)
    of_kind = rows[rows["kind"] == kind]
    return {
        str(name): Sheet(own, questions, seeds, int(own["chain"].max()) + 1, truncated)
        for name, own in of_kind.groupby("system", sort=False)
    }
