"""Reading a version's rows and trees back: one question's, or all one after another, with one in memory at a time."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from malt.datasets.rows.tables import QUESTIONS_FILE, TRAJECTORIES_FILE, QuestionRow, TrajectoryRow
from malt.datasets.version.restore import restore_tree
from malt.errors import VersionError
from malt.trees.credit import ValuedTree

if TYPE_CHECKING:
    from malt.datasets.version.dataset_version import DatasetVersion

Row = Mapping[str, object]

_READ_ROWS = 1_000


class StoredTree(NamedTuple):
    """A question's row, and its tree; what the roles saw is left out."""

    question: QuestionRow
    valued: ValuedTree


@contextmanager
def reading(version: Path, place: str = "") -> Iterator[None]:
    """Raise `VersionError` for what cannot be read in a version's folder, or is not what a version holds."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise VersionError(f"{place or version} cannot be read ({error}); try: malt verify {version}") from error


def stored_trees(version: "DatasetVersion") -> Iterator[StoredTree]:
    """Rebuild a version's trees one after another. Raises `VersionError` where they cannot be read."""
    spec = version.spec
    with reading(version.path):
        stored = Cursor(parquet_rows(version.path / TRAJECTORIES_FILE))
        for row in parquet_rows(version.path / QUESTIONS_FILE):
            question = cast("QuestionRow", row)
            if question["complete"]:
                nodes = [cast("TrajectoryRow", node) for node in stored.take(question["question_id"])]
                yield StoredTree(question, restore_tree(question, nodes, {}, spec))


def stored_tree(version: "DatasetVersion", question: QuestionRow) -> ValuedTree:
    """Rebuild one question's tree. Raises `VersionError` where it has none, with the reasons."""
    question_id = question["question_id"]
    if not question["complete"]:
        failed = [branch for branch in version.manifest.failures if branch.question_id == question_id]
        reasons = "; ".join(f"{branch.role} below {branch.address or 'the root'}: {branch.reason}" for branch in failed)
        raise VersionError(f"question {question_id!r} has no tree in {version.reference}: {reasons or 'it failed'}")
    rows = [cast("TrajectoryRow", row) for row in read_rows(version, TRAJECTORIES_FILE, question_id)]
    with reading(version.path, f"question {question_id!r} of {version.reference}"):
        return restore_tree(question, rows, {}, version.spec)


def read_question_row(version: "DatasetVersion", question_id: str) -> QuestionRow | None:
    """Read one question's row; None where the version has none."""
    rows = read_rows(version, QUESTIONS_FILE, question_id)
    return cast("QuestionRow", rows[0]) if rows else None


def read_rows(
    version: "DatasetVersion", file: str, question_id: str | None = None, columns: list[str] | None = None
) -> list[Row]:
    """Read rows of a file. Raises `VersionError` where that cannot be done."""
    filters = None if question_id is None else [("question_id", "==", question_id)]
    with reading(version.path, str(version.path / file)):
        table = pq.read_table(version.path / file, columns=columns, filters=filters, partitioning=None)
    rows: list[Row] = table.to_pylist()
    return rows


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read a parquet file row by row; of each row all columns, or some."""
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(batch_size=_READ_ROWS, columns=columns and list(columns)):
            yield from batch.to_pylist()


class Cursor:
    """Walks through rows that lie in the order of their questions."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._groups = itertools.groupby(rows, key=lambda row: row["question_id"])
        self._next = next(self._groups, None)

    def take(self, question_id: str) -> list[Row]:
        """Return one question's rows, if they come next."""
        if self._next is None or self._next[0] != question_id:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows

    @property
    def left(self) -> Iterator[object]:
        """The questions of all rows that nobody took."""
        while self._next is not None:
            yield self._next[0]
            self._next = next(self._groups, None)
