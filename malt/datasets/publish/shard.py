"""Shard: what some questions' trees give to a version, as it lies in the version's files, and counted.

It follows from the trees alone, so processes can make many at once; the writer puts them one behind the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from malt.config.roles import PLAYERS, Role
from malt.config.spec import RunSpec
from malt.datasets.pages.sample import NO_BAR, RankBar, TreeSample
from malt.datasets.rows.examples import question_row, scored_examples, trajectory_rows, write_rows
from malt.datasets.rows.files import as_batch, json_line
from malt.datasets.rows.selection import SelectionCount, measure_lengths, select, token_counter
from malt.datasets.rows.tables import (
    QUESTIONS_FILE,
    SCHEMAS,
    TRAJECTORIES_FILE,
    QuestionRow,
    TrajectoryRow,
    role_file,
    training_file,
)
from malt.datasets.stats.counts import Mergeable, TreeCount, UsageCount, as_failure
from malt.datasets.stats.diagnostics import DiagnosticsCount
from malt.questions.question import Question
from malt.questions.screening import Screening
from malt.trees.credit import ValuedTree, value_tree
from malt.trees.growth import nodes_per_question
from malt.trees.pipeline import asks_judge
from malt.trees.replay import Assessed, Source, infrequent_gc, map_items, read_trees, windows
from malt.trees.tree import FailedBranch, Tree

_NODES = 1_000
"""Nodes of the trees in one shard, about."""

Failed = Mapping[str, Sequence[FailedBranch]]
"""What is missing of questions that are known to have no whole tree, by their ids."""
_NONE_FAILED: Failed = MappingProxyType({})

Known = Mapping[str, Assessed]
"""Trees that were assessed already, by question id: they are not read from the store again."""
NONE_KNOWN: Known = MappingProxyType({})


class VersionStats(Mergeable):
    """All that is counted of a version's trees."""

    def __init__(self, spec: RunSpec, bar: RankBar = NO_BAR) -> None:
        self.trees = TreeCount()
        self.diagnostics = DiagnosticsCount(spec)
        self.selection = SelectionCount()
        self.sample = TreeSample(bar)
        self.judge: UsageCount | None = None
        """The judge's completions behind the grades; None where those are not known."""


class Shard(NamedTuple):
    """What some questions' trees give to a version."""

    stats: VersionStats
    tables: Mapping[str, pa.RecordBatch]
    """Rows by the name of their file; files without any are left out."""
    lines: Mapping[str, Sequence[bytes]]
    """Examples as JSON, by the name of their file."""


def make_shard(trees: Iterable[ValuedTree], spec: RunSpec, screening: Screening, bar: RankBar = NO_BAR) -> Shard:
    """Work out what trees give, in the order of their questions; `bar` is that of the report's sample so far."""
    maker = _ShardMaker(spec, screening, bar)
    for valued in trees:
        maker.add(valued)
    tables = {path: as_batch(rows, SCHEMAS[path]) for path, rows in maker.rows.items()}
    return Shard(maker.stats, tables, maker.lines)


class _ShardMaker:
    def __init__(self, spec: RunSpec, screening: Screening, bar: RankBar) -> None:
        self.spec = spec
        self.screening = screening
        self.stats = VersionStats(spec, bar)
        self.rows: dict[str, list[Mapping[str, object]]] = {}
        self.lines: dict[str, list[bytes]] = {}
        self._count_tokens = token_counter(spec.dataset)

    def add(self, valued: ValuedTree) -> None:
        """Take one question's tree; of one that is not whole, its question and what is missing."""
        question = self._question(valued.tree)
        self._put(QUESTIONS_FILE, [question])
        self.stats.trees.add(valued)
        nodes: list[TrajectoryRow] = []
        if valued.tree.complete:
            valued = measure_lengths(valued, self._count_tokens)
            nodes = list(trajectory_rows(valued))
            self._put(TRAJECTORIES_FILE, nodes)
            self.stats.diagnostics.add(valued)
            for role in PLAYERS:
                self._add_role(valued, role, question)
        self.stats.sample.add(question, nodes, [as_failure(branch) for branch in valued.tree.failures])

    def _question(self, tree: Tree) -> QuestionRow:
        question_id, screening = tree.question.question_id, self.screening
        split = screening.choose_split(question_id, self.spec.dataset)
        return question_row(tree, split, screening.excluded.get(question_id))

    def _add_role(self, valued: ValuedTree, role: Role, question: QuestionRow) -> None:
        excluded = self.screening.excluded.get(question["question_id"])
        selected = select(valued, role, self.spec.dataset, excluded)
        self.stats.selection.add(role, selected)
        for kind, found in selected.items():
            self._put(role_file(kind, role, question["split"]), write_rows(kind, valued, role, found.kept))
        self.lines.setdefault(training_file(role), []).extend(map(json_line, scored_examples(valued, role)))

    def _put(self, path: str, rows: Iterable[Mapping[str, object]]) -> None:
        self.rows.setdefault(path, []).extend(rows)


class _ShardInputs(NamedTuple):
    """What one shard is made of, out of the store."""

    questions: Sequence[Question]
    screening: Screening
    """Of these questions alone."""
    failed: Failed
    """Those whose trees are not looked for."""
    bar: RankBar
    known: Known


def stored_shards(
    questions: Sequence[Question],
    source: Source,
    screening: Screening,
    so_far: VersionStats,
    failed: Failed = _NONE_FAILED,
    known: Known = NONE_KNOWN,
) -> Iterator[Shard]:
    """Yield what the trees in the store give to a version, some questions' at a time, in their order; the stats of each
    are merged into `so_far` before the next is taken.
    """
    size = ceil(_NODES / sum(nodes_per_question(source.spec).values()))
    inputs = (_inputs_of(window, screening, failed, so_far.sample.bar, known) for window in windows(questions, size))
    return map_items(_stored_shard, inputs, source)


def _inputs_of(
    questions: Sequence[Question], screening: Screening, failed: Failed, bar: RankBar, known: Known
) -> _ShardInputs:
    """Return what one shard takes: another process need not know of the other questions."""
    ids = [question.question_id for question in questions]
    own_failed = {each: failed[each] for each in ids if each in failed}
    own_known = {each: known[each] for each in ids if each in known}
    return _ShardInputs(questions, screening.select(ids), own_failed, bar, own_known)


@infrequent_gc()
def _stored_shard(inputs: _ShardInputs, source: Source) -> Shard:
    spec = source.spec
    unknown = [each for each in inputs.questions if each.question_id not in {*inputs.failed, *inputs.known}]
    assessed = {one.valued.tree.question.question_id: one for one in read_trees(unknown, source)} | dict(inputs.known)
    trees = (
        assessed[question.question_id].valued
        if question.question_id in assessed
        else value_tree(Tree(question, {}, tuple(inputs.failed[question.question_id])), {}, spec.credit)
        for question in inputs.questions
    )
    shard = make_shard(trees, spec, inputs.screening, inputs.bar)
    if asks_judge(spec):
        shard.stats.judge = judge = UsageCount()
        for one in assessed.values():
            for completion in one.judged if one.valued.tree.complete else ():
                judge.add(completion)
    return shard
