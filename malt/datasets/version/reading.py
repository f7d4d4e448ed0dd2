"""Reading back a version's rows and trees: those of one question, or all with one tree in memory at a time."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from malt.config.roles import PLAYERS
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.datasets.rows.tables import QUESTIONS_FILE, SCHEMAS, TRAJECTORIES_FILE, MessageRow, QuestionRow, TrajectoryRow
from malt.errors import VersionError
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import Completion, Message
from malt.questions.question import Question
from malt.questions.screening import CONTAMINATED, Exclusion, Screening, screen_known
from malt.trees.credit import Length, OwnAnswer, ValuedTree, value_tree
from malt.trees.tree import Address, Node, Tree

if TYPE_CHECKING:
    from malt.datasets.version.dataset_version import DatasetVersion


Row = Mapping[str, object]

_READ_ROWS = 1_000


class StoredTree(NamedTuple):
    """A question's row, and its tree without the prompts."""

    question: QuestionRow
    valued: ValuedTree


UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    pa.ArrowException,
)
"""Errors that damaged or foreign files raise when they are read."""


def is_unread(error: BaseException | None) -> bool:
    """Whether the system could not read, which says nothing about the content; Arrow's own errors have no `errno`."""
    return isinstance(error, OSError) and error.errno is not None


@contextmanager
def reading(version: Path, place: str = "") -> Iterator[None]:
    """Turn errors of reading a version's files, or of wrong content in them, into `VersionError`."""
    try:
        yield
    except UNREADABLE as error:
        raise VersionError(f"{place or version} cannot be read ({error}); try: malt verify {version}") from error


def stored_trees(version: "DatasetVersion") -> Iterator[StoredTree]:
    """Rebuild a version's trees one after another. Raises `VersionError` where they cannot be read."""
    spec = version.spec
    with reading(version.path):
        for question, nodes in question_nodes(version):
            if question["complete"]:
                yield StoredTree(question, restore_tree(question, nodes, {}, spec))


def question_nodes(version: "DatasetVersion") -> Iterator[tuple[QuestionRow, list[TrajectoryRow]]]:
    """Yield every question with the rows of its nodes; an incomplete one has none."""
    stored = Cursor(parquet_rows(version.path / TRAJECTORIES_FILE))
    for question in question_rows(version):
        yield question, cast("list[TrajectoryRow]", stored.take(question["question_id"]))


def question_rows(version: "DatasetVersion") -> Iterator[QuestionRow]:
    return (cast("QuestionRow", row) for row in parquet_rows(version.path / QUESTIONS_FILE))


def screen_again(version: "DatasetVersion") -> tuple[list[Question], Screening]:
    """Read the questions and screen them. Overlaps with test sets are taken as recorded: a version lacks the sets."""
    questions = [_restore_question(row) for row in question_rows(version)]
    excluded = ((row["question_id"], exclusion_of(row)) for row in question_rows(version))
    contaminated = {question_id: each for question_id, each in excluded if each and each.reason == CONTAMINATED}
    return questions, screen_known(questions, version.spec.dataset, contaminated, version.manifest.screening.test_sets)


def stored_tree(version: "DatasetVersion", question: QuestionRow) -> ValuedTree:
    """Rebuild one question's tree. Raises `VersionError`, with the reasons, where there is none."""
    question_id = question["question_id"]
    if not question["complete"]:
        failed = [branch for branch in version.manifest.failures if branch.question_id == question_id]
        reasons = "; ".join(f"{branch.role} below {branch.address or 'the root'}: {branch.reason}" for branch in failed)
        raise VersionError(f"question {question_id!r} has no tree in {version.reference}: {reasons or 'it failed'}")
    rows = [cast("TrajectoryRow", row) for row in read_file(version, TRAJECTORIES_FILE, question_id)]
    with reading(version.path, f"question {question_id!r} of {version.reference}"):
        return restore_tree(question, rows, {}, version.spec)


def read_question_row(version: "DatasetVersion", question_id: str) -> QuestionRow | None:
    """Read one question's row; None where the version has none."""
    rows = read_file(version, QUESTIONS_FILE, question_id)
    return cast("QuestionRow", rows[0]) if rows else None


def read_file(
    version: "DatasetVersion", file: str, question_id: str | None = None, columns: list[str] | None = None
) -> list[Row]:
    """Read rows of a file. Raises `VersionError` where it cannot be read."""
    with reading(version.path, str(version.path / file)):
        rows: list[Row] = read_table(version, file, question_id, columns).to_pylist()
    return rows


def read_table(
    version: "DatasetVersion", file: str, question_id: str | None = None, columns: list[str] | None = None
) -> pa.Table:
    filters = None if question_id is None else [("question_id", "==", question_id)]
    open_parquet(version.path / file).close()
    return pq.read_table(version.path / file, columns=columns, filters=filters, partitioning=None)


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file, with all columns or some."""
    with open_parquet(path) as parquet:
        for batch in parquet.iter_batches(batch_size=_READ_ROWS, columns=columns and list(columns)):
            yield from batch.to_pylist()


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a version's file of rows. Raises `ValueError` for an unknown file or a column of another type.

    Columns may be missing or additional, as in versions of other releases.
    """
    parquet = pq.ParquetFile(path)
    known = SCHEMAS.get("/".join(path.parts[-2:])) or SCHEMAS.get(path.name)
    found = {field.name: field.type for field in parquet.schema_arrow}
    if known is None or any(found.get(field.name, field.type) != field.type for field in known):
        parquet.close()
        raise ValueError("its columns are not those of a published file")
    return parquet


class Cursor:
    """Reader of rows sorted by question, one question after another."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._groups = itertools.groupby(rows, key=lambda row: row["question_id"])
        self._next = next(self._groups, None)

    def take(self, question_id: str) -> list[Row]:
        """Return one question's rows if they come next, else none."""
        if self._next is None or self._next[0] != question_id:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows

    @property
    def left(self) -> Iterator[object]:
        """Question ids of the rows that were not taken."""
        while self._next is not None:
            yield self._next[0]
            self._next = next(self._groups, None)


_Prompts = Mapping[str, list[MessageRow]]
"""Prompts of siblings, by the node id of their parent."""

_REQUIRED_COLUMNS = ("text", "model", "finish_reason", "latency_s", "run")
_OPTIONAL_COLUMNS = ("reasoning", "prompt_tokens", "completion_tokens", "cost_usd")


def restore_tree(question: QuestionRow, rows: Iterable[TrajectoryRow], prompts: _Prompts, spec: RunSpec) -> ValuedTree:
    """Rebuild one complete tree; values and labels are computed from the leaves' rewards, not read."""
    nodes, grades, diagnosis, lengths = {}, {}, {}, {}
    for row in rows:
        address = _parse_node_id(row["node_id"])
        nodes[address] = _restore_node(address, row, prompts.get(row["node_id"].rpartition(".")[0], []))
        lengths[address] = Length(row["prompt_length"], row["text_length"])
        if row["outcome"] is not None or address.is_leaf:
            grades[address] = _restore_grade(row, spec.evaluator)
        if row["own_outcome"] is not None:
            diagnosis[address] = OwnAnswer(Outcome(row["own_outcome"]), row["own_answer"])
    valued = value_tree(Tree(_restore_question(question), nodes), grades, spec.credit)
    return replace(valued, diagnosis=diagnosis, lengths=lengths)


def _restore_node(address: Address, row: TrajectoryRow, prompt: list[MessageRow]) -> Node:
    """Rebuild one node. Raises `ValueError` where a required column is empty."""
    stored: dict[str, Any] = dict(row)
    if empty := [name for name in (*_REQUIRED_COLUMNS, "request_key") if stored[name] is None]:
        raise ValueError(f"node {address} has no {', '.join(empty)}")
    known = {name: stored[name] for name in (*_REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS)}
    completion = Completion(key=row["request_key"], **known)
    return Node(address, tuple(Message(turn["role"], turn["content"]) for turn in prompt), completion)


def _restore_grade(row: TrajectoryRow, evaluator: EvaluatorSpec) -> Grade:
    """Rebuild a graded node's grade; its score is the reward, or without one the weighted mean of the two scores."""
    correctness, reasoning = row["correctness_score"], row["reasoning_score"]
    evaluation = None
    explanation, key_matches = tuple(row["explanation"] or ()), tuple(row["key_matches"] or ())
    if None in (*explanation, *key_matches):
        raise ValueError(f"node {row['node_id']} has an empty line in its explanation or key_matches")
    if correctness is not None and reasoning is not None:
        weights = evaluator.correctness_weight, evaluator.reasoning_weight
        weighted = (correctness * weights[0] + reasoning * weights[1]) / sum(weights)
        evaluation = Evaluation(
            correctness_score=correctness,
            reasoning_score=reasoning,
            explanation=explanation,
            key_matches=key_matches,
            score=weighted if row["reward"] is None else row["reward"],
        )
    outcome = Outcome(row["outcome"] or Outcome.UNKNOWN)
    return Grade(outcome, row["answer"], row["grader"] or "", evaluation, row["error"])


def _restore_question(row: QuestionRow) -> Question:
    """Rebuild a question. Raises `ValueError` where a required column is empty."""
    choices, metadata = tuple(row["choices"]), json.loads(row["metadata"])
    texts: dict[str, Any] = {name: dict(row)[name] for name in ("question_id", "question", "ground_truth", "reference")}
    if None in (*texts.values(), *choices) or not isinstance(metadata, dict):
        raise ValueError(f"question {row['question_id']!r} lacks a text, or its metadata is no object")
    return Question(**texts, choices=choices, metadata=metadata)


def exclusion_of(row: QuestionRow) -> Exclusion | None:
    """Return why a question gives no rows; None where nothing excludes it."""
    return None if row["excluded"] is None else Exclusion(row["excluded"], row["excluded_by"] or "")


def _parse_node_id(node_id: str) -> Address:
    address = Address(int(sample) for sample in node_id.split("."))
    if len(address) > len(PLAYERS):
        raise ValueError(f"{node_id!r} is deeper than a refinement")
    return address
