"""Rows of an evaluation, one a chain: as `answers.parquet` holds them, and as grids by question, seed and chain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from malt.config.evaluate import Measure
from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from malt.datasets.rows.files import RowsDigest, RowsWritten, as_batch
from malt.datasets.stats.diagnostics import Ballot, Truth, majority
from malt.datasets.version.reading import reading
from malt.evaluation.statistics import Scores
from malt.evaluation.systems import Lineup, require_evaluate
from malt.grading.grades import Grade, Outcome
from malt.llm.request import Completion
from malt.questions.question import Question

if TYPE_CHECKING:
    import pandas as pd

ANSWERS_FILE = "answers.parquet"
_USAGE = {
    "prompt_tokens": pa.int64(), "completion_tokens": pa.int64(), "cost_usd": pa.float64(), "latency_s": pa.float64(),
}  # fmt: skip
_QUESTION = ("question_id", "question", "ground_truth")
_MEASURED = {f"generator_{name}": kind for name, kind in _USAGE.items()} | _USAGE
"""Columns that describe the run, not the content; no digest covers them."""
_ANSWERS = pa.schema(
    {
        **dict.fromkeys(("question_id", "system", "kind"), pa.string()),
        **dict.fromkeys(("chain", "seed"), pa.int64()),
        **dict.fromkeys(("question", "ground_truth", *PLAYERS, "generator_outcome", "generator_answer"), pa.string()),
        "verdict": pa.bool_(),
        **dict.fromkeys(("outcome", "answer"), pa.string()),
        **_MEASURED,
    }.items()
)


class Taken(NamedTuple):
    """Usage of several texts; a figure is None where it is unknown for one of them."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    latency_s: float

    @classmethod
    def by(cls, completions: Sequence[Completion]) -> Self:
        parts: dict[str, list[Any]] = {name: [getattr(each, name) for each in completions] for name in cls._fields}
        added: dict[str, Any] = {name: None if None in part else sum(part) for name, part in parts.items()}
        return cls(**added)


@dataclass(frozen=True, slots=True)
class Answer:
    """One chain: its texts, the grades of its generation and of its final answer, and its usage."""

    question: Question
    lineup: Lineup
    chain: int
    texts: dict[str, str | None]
    """Text of each role; None where the role does not take part, or its request failed."""
    single: Grade
    verdict: bool | None
    """Whether the verifier says that the generator's answer is correct; None where it states nothing."""
    final: Grade
    single_took: Taken
    took: Taken

    def as_row(self) -> dict[str, object]:
        return {
            **{name: getattr(self.question, name) for name in _QUESTION},
            **{name: getattr(self.lineup, name) for name in ("system", "kind", "seed")},
            "chain": self.chain,
            **self.texts,
            "generator_outcome": self.single.outcome,
            "generator_answer": self.single.answer,
            "verdict": self.verdict,
            "outcome": self.final.outcome,
            "answer": self.final.answer,
            **{f"generator_{name}": value for name, value in self.single_took._asdict().items()},
            **self.took._asdict(),
        }


def make_table(answers: Iterable[Answer]) -> pa.Table:
    return pa.Table.from_batches([as_batch([answer.as_row() for answer in answers], _ANSWERS)], _ANSWERS)


def write_answers(table: pa.Table, path: Path) -> RowsWritten:
    pq.write_table(table, path, compression="zstd")
    return RowsWritten(table.num_rows, rows_digest(table))


def rows_digest(table: pa.Table) -> str:
    return _digest_columns(table, [name for name in _ANSWERS.names if name not in _MEASURED])


def questions_digest(table: pa.Table) -> str:
    """Return the digest of the questions, each once, in order."""
    frame = make_frame(table.select(_QUESTION)).drop_duplicates("question_id")
    return _digest_columns(pa.Table.from_pandas(frame, table.select(_QUESTION).schema, preserve_index=False), _QUESTION)


def _digest_columns(table: pa.Table, columns: Iterable[str]) -> str:
    digest = RowsDigest(table.schema, [*columns])
    for batch in table.combine_chunks().to_batches():
        digest.update(batch)
    return digest.hexdigest()


def read_answers(folder: Path) -> pa.Table:
    """Read a version's answers. Raises `VersionError`."""
    with reading(folder, str(folder / ANSWERS_FILE)):
        return pq.read_table(folder / ANSWERS_FILE, schema=_ANSWERS)


def make_frame(table: pa.Table) -> "pd.DataFrame":
    """Return a table as a data frame in which missing values are None."""
    import pandas as pd

    columns = ((name, table.column(name)) for name in table.column_names)
    return pd.DataFrame({name: pd.Series(column.to_pylist(), dtype=_dtype_of(column)) for name, column in columns})


def _dtype_of(column: pa.ChunkedArray) -> str:
    """Return the dtype that keeps None apart from texts and numbers."""
    return "object" if column.null_count or not pa.types.is_primitive(column.type) else str(column.type)


# Sheets.

_NO_ANSWER = {None, Outcome.UNANSWERED, Outcome.TRUNCATED}
"""Outcomes that give no vote."""

Grid = NDArray[Any]
"""Values by question, seed and chain."""


@dataclass(frozen=True)
class Sheet:
    """One system's answers of one kind as grids."""

    rows: "pd.DataFrame"
    questions: Sequence[str]
    seeds: Sequence[int | None]
    chains: int
    truncated: Truth
    """Truth value of a truncated text."""

    def grid(self, column: str) -> Grid:
        """Return a column's values; None where there is no answer."""
        values = np.full((len(self.questions), len(self.seeds), self.chains), None, dtype=object)
        question_index = {question: index for index, question in enumerate(self.questions)}
        seed_index = {seed: index for index, seed in enumerate(self.seeds)}
        for question, seed, chain, value in zip(
            self.rows["question_id"], self.rows["seed"], self.rows["chain"], self.rows[column], strict=True
        ):
            values[question_index[question], seed_index[seed], chain] = value
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
        """Return one score a question: the share of its answers, or votes, that are right."""
        return shares(self.by_seed(measure))

    def by_seed(self, measure: Measure) -> Grid:
        """Return whether answers, or votes, are right, by question, seed and chain."""
        truths = self.single if measure.startswith("sa") else self.final
        if not measure.endswith("_mv"):
            return truths
        outcome, answer = ("generator_outcome", "generator_answer") if measure == "sa_mv" else ("outcome", "answer")
        return self._votes(self.grid(outcome), self.grid(answer), truths)

    def _truths(self, column: str) -> Grid:
        wrong = dict.fromkeys((Outcome.WRONG, Outcome.UNANSWERED), False)
        known: dict[Outcome, Truth] = {Outcome.RIGHT: True, **wrong, Outcome.TRUNCATED: self.truncated}
        outcomes = self.grid(column)
        truths = [None if outcome is None else known.get(Outcome(outcome)) for outcome in outcomes.flat]
        return np.array([*truths, None], dtype=object)[:-1].reshape(outcomes.shape)

    def _votes(self, outcomes: Grid, answers: Grid, truths: Grid) -> Grid:
        """Vote over the chains of each question and seed; a tie goes to the answer given first."""
        votes = np.full((*outcomes.shape[:2], 1), None, dtype=object)
        for place in np.ndindex(outcomes.shape[:2]):
            votes[place][0] = majority(
                [
                    Ballot(answer, truth, is_cast=outcome not in _NO_ANSWER)
                    for outcome, answer, truth in zip(outcomes[place], answers[place], truths[place], strict=True)
                ]
            )
        return votes


def shares(truths: Grid) -> Scores:
    """Return the share of right ones among each question's known truths; nan where none is known."""
    rows = truths.reshape(len(truths), -1)
    with np.errstate(invalid="ignore"):
        return cast("Scores", (rows == True).sum(axis=1) / (rows != None).sum(axis=1))  # noqa: E711, E712 - elementwise


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
