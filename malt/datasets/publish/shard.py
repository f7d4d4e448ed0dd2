"""Shards: the rows and statistics that the trees of some questions add to a version.

A shard depends on its trees alone, so several processes can make shards at once; the writer appends them in order.
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
from malt.datasets.rows.tables import QUESTIONS_FILE, SCHEMAS, TRAJECTORIES_FILE, role_file, training_file
from malt.datasets.stats.counts import Mergeable, TreeCount, UsageCount, as_failure
from malt.datasets.stats.diagnostics import DiagnosticsCount
from malt.questions.question import Question
from malt.questions.screening import Exclusion, Screening, Split
from malt.trees.credit import ValuedTree
from malt.trees.growth import nodes_per_question
from malt.trees.pipeline import asks_judge
from malt.trees.replay import Assessed, Source, infrequent_gc, map_items, read_trees, windows

_NODES = 1_000
"""Approximate number of tree nodes in one shard."""

Known = Mapping[str, Assessed]
"""Trees at hand, complete or not, by question id: they are not read from the store."""
NONE_KNOWN: Known = MappingProxyType({})


class VersionStats(Mergeable):
    """Statistics of a version's trees."""

    def __init__(self, spec: RunSpec, bar: RankBar = NO_BAR) -> None:
        self.trees = TreeCount()
        self.diagnostics = DiagnosticsCount(spec)
        self.selection = SelectionCount()
        self.sample = TreeSample(bar)
        self.judge: UsageCount | None = None
        """Usage of the judge's completions behind the grades; None where it is not known."""


class TreeWriter:
    """Writes trees as rows of a version's files, and counts them, in the order of their questions."""

    def __init__(self, spec: RunSpec, screening: Screening, bar: RankBar = NO_BAR) -> None:
        self.spec = spec
        self.screening = screening
        self.stats = VersionStats(spec, bar)
        self.rows: dict[str, list[Mapping[str, object]]] = {}
        """Rows by the name of their file; a file without rows may be left out."""
        self.lines: dict[str, list[bytes]] = {}
        """JSON lines of the examples, by the name of their file."""

    def add(self, valued: ValuedTree) -> None:
        """Add one question's tree, its lengths measured; of an incomplete tree, add its question and its failures."""
        question_id = valued.tree.question.question_id
        excluded = self.screening.excluded.get(question_id)
        question = question_row(valued.tree, self.screening.choose_split(question_id, self.spec.dataset), excluded)
        nodes = list(trajectory_rows(valued)) if valued.tree.complete else []
        self._put(QUESTIONS_FILE, [question])
        self._put(TRAJECTORIES_FILE, nodes)
        self.stats.trees.add(valued)
        self.stats.sample.add(question, nodes, [as_failure(branch) for branch in valued.tree.failures])
        if valued.tree.complete:
            self.stats.diagnostics.add(valued)
            for role in PLAYERS:
                self._add_role(valued, role, question["split"], excluded)

    def _add_role(self, valued: ValuedTree, role: Role, split: Split, excluded: Exclusion | None) -> None:
        selected = select(valued, role, self.spec.dataset, excluded)
        self.stats.selection.add(role, selected)
        for kind, found in selected.items():
            self._put(role_file(kind, role, split), write_rows(kind, valued, role, found.kept))
        self.lines.setdefault(training_file(role), []).extend(map(json_line, scored_examples(valued, role)))

    def _put(self, path: str, rows: Iterable[Mapping[str, object]]) -> None:
        self.rows.setdefault(path, []).extend(rows)


class Shard(NamedTuple):
    """Statistics and rows of some questions' trees, the rows by the name of their file."""

    stats: VersionStats
    tables: Mapping[str, pa.RecordBatch]
    lines: Mapping[str, Sequence[bytes]]


def make_shard(trees: Iterable[ValuedTree], spec: RunSpec, screening: Screening, bar: RankBar = NO_BAR) -> Shard:
    """Make a shard of trees, in the order of their questions; `bar` is that of the report's sample so far."""
    writer, count_tokens = TreeWriter(spec, screening, bar), token_counter(spec.dataset)
    for valued in trees:
        writer.add(measure_lengths(valued, count_tokens) if valued.tree.complete else valued)
    tables = {path: as_batch(rows, SCHEMAS[path]) for path, rows in writer.rows.items()}
    return Shard(writer.stats, tables, writer.lines)


class _ShardInputs(NamedTuple):
    """Inputs of one shard besides the store: only its own questions, so that little is sent to another process."""

    questions: Sequence[Question]
    screening: Screening
    bar: RankBar
    known: Known


def stored_shards(
    questions: Sequence[Question], source: Source, screening: Screening, so_far: VersionStats, known: Known = NONE_KNOWN
) -> Iterator[Shard]:
    """Yield shards of the trees in the store, in the order of the questions. The caller merges each shard's stats into
    `so_far` before it takes the next one.
    """

    def inputs_of(window: Sequence[Question]) -> _ShardInputs:
        ids = [question.question_id for question in window]
        own = {each: known[each] for each in ids if each in known}
        return _ShardInputs(window, screening.select(ids), so_far.sample.bar, own)

    size = ceil(_NODES / sum(nodes_per_question(source.spec).values()))
    return map_items(_stored_shard, map(inputs_of, windows(questions, size)), source)


@infrequent_gc()
def _stored_shard(inputs: _ShardInputs, source: Source) -> Shard:
    unknown = [each for each in inputs.questions if each.question_id not in inputs.known]
    found = {one.valued.tree.question.question_id: one for one in read_trees(unknown, source)} | dict(inputs.known)
    assessed = [found[question.question_id] for question in inputs.questions]
    shard = make_shard((one.valued for one in assessed), source.spec, inputs.screening, inputs.bar)
    if asks_judge(source.spec):
        shard.stats.judge = judge = UsageCount()
        for one in assessed:
            for completion in one.judged if one.valued.tree.complete else ():
                judge.add(completion)
    return shard
