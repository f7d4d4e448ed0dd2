"""Portion: what some questions' trees give to a version, as it lies in the version's files, and counted.

It follows from the trees alone, so processes can make many at once; publishing puts them one behind the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from malt.config.spec import PLAYERS, Role, RunSpec
from malt.datasets.pages.sample import NO_BAR, Bar, TreeSample
from malt.datasets.rows import examples
from malt.datasets.rows.files import as_batch, json_line
from malt.datasets.rows.lengths import measured, token_counter
from malt.datasets.rows.selection import SelectionCount, rows_by_kind, select
from malt.datasets.rows.tables import QUESTIONS_FILE, SCHEMAS, TRAJECTORIES_FILE, role_file, training_file
from malt.datasets.stats.counts import Census, UsageCount, as_failure
from malt.datasets.stats.diagnostics import DiagnosticsCount
from malt.questions.question import Question
from malt.questions.screening import Screening
from malt.trees.credit import ValuedTree, value_tree
from malt.trees.growth import nodes_per_question
from malt.trees.pipeline import asks_judge
from malt.trees.replay import Source, assess_window, collecting_seldom, made_of_each, windows
from malt.trees.tree import FailedBranch, Tree

NODES = 1_000
"""Nodes of the trees in one portion, about."""

Failed = Mapping[str, Sequence[FailedBranch]]
"""What is missing of questions that are known to have no whole tree, by their ids."""
NONE_FAILED: Failed = MappingProxyType({})


class Figures:
    """All that is counted of a version's trees."""

    def __init__(self, spec: RunSpec, bar: Bar = NO_BAR) -> None:
        self.census = Census()
        self.diagnostics = DiagnosticsCount(spec)
        self.selection = SelectionCount()
        self.trees = TreeSample(bar)
        self.judge: UsageCount | None = None
        """The judge's completions behind the grades; None where those are not known."""

    def merge(self, other: "Figures") -> None:
        """Count what another has counted, of questions that come after these."""
        self.census.merge(other.census)
        self.diagnostics.merge(other.diagnostics)
        self.selection.merge(other.selection)
        self.trees.merge(other.trees)
        if other.judge is not None:
            self.judge = self.judge or UsageCount()
            self.judge.merge(other.judge)


class Portion(NamedTuple):
    """What some questions' trees give to a version."""

    figures: Figures
    tables: Mapping[str, pa.RecordBatch]
    """Rows by the name of their file; files without any are left out."""
    lines: Mapping[str, Sequence[bytes]]
    """Examples as JSON, by the name of their file."""


def portion_of(trees: Iterable[ValuedTree], spec: RunSpec, screening: Screening, bar: Bar = NO_BAR) -> Portion:
    """Work out what trees give, in the order of their questions; `bar` is that of the report's sample so far."""
    cutting = Cutting(spec, screening, bar)
    for valued in trees:
        cutting.add(valued)
    tables = {path: as_batch(rows, SCHEMAS[path]) for path, rows in cutting.rows.items()}
    return Portion(cutting.figures, tables, cutting.lines)


class Cutting:
    """A portion in the making."""

    def __init__(self, spec: RunSpec, screening: Screening, bar: Bar) -> None:
        self.spec = spec
        self.screening = screening
        self.figures = Figures(spec, bar)
        self.rows: dict[str, list[Mapping[str, object]]] = {}
        self.lines: dict[str, list[bytes]] = {}
        self._count_tokens = token_counter(spec.dataset)

    def add(self, valued: ValuedTree) -> None:
        """Take one question's tree; of one that is not whole, its question and what is missing."""
        question = self._question(valued.tree)
        self._put(QUESTIONS_FILE, [question])
        self.figures.census.add(valued)
        nodes: list[examples.TrajectoryRow] = []
        if valued.tree.complete:
            valued = measured(valued, self._count_tokens)
            nodes = list(examples.trajectory_rows(valued))
            self._put(TRAJECTORIES_FILE, nodes)
            self.figures.diagnostics.add(valued)
            for role in PLAYERS:
                self._add_role(valued, role, question)
        self.figures.trees.add(question, nodes, [as_failure(branch) for branch in valued.tree.failures])

    def _question(self, tree: Tree) -> examples.QuestionRow:
        question_id, screening = tree.question.question_id, self.screening
        split = screening.split_of(question_id, self.spec.dataset)
        return examples.question_row(tree, split, screening.excluded.get(question_id))

    def _add_role(self, valued: ValuedTree, role: Role, question: examples.QuestionRow) -> None:
        excluded = self.screening.excluded.get(question["question_id"])
        selected = select(valued, role, self.spec.dataset, excluded)
        self.figures.selection.add(role, selected)
        for kind, rows in rows_by_kind(valued, role, selected).items():
            self._put(role_file(kind, role, question["split"]), rows)
        lines = map(json_line, examples.scored_examples(valued, role))
        self.lines.setdefault(training_file(role), []).extend(lines)

    def _put(self, path: str, rows: Iterable[Mapping[str, object]]) -> None:
        self.rows.setdefault(path, []).extend(rows)


class Share(NamedTuple):
    """What one portion is made of, out of the store."""

    questions: Sequence[Question]
    screening: Screening
    """Of these questions alone."""
    failed: Failed
    """Those whose trees are not looked for."""
    bar: Bar


def stored_portions(
    questions: Sequence[Question], source: Source, screening: Screening, so_far: Figures, failed: Failed = NONE_FAILED
) -> Iterator[Portion]:
    """Yield what the trees in the store give to a version, some questions' at a time, in their order.

    `so_far` is where the figures of each are merged into before the next is taken.
    """
    size = ceil(NODES / sum(nodes_per_question(source.spec).values()))
    shares = (share_of(window, screening, failed, so_far.trees.bar) for window in windows(questions, size))
    return made_of_each(stored_portion, shares, source)


def share_of(questions: Sequence[Question], screening: Screening, failed: Failed, bar: Bar) -> Share:
    """Return what one portion takes: another process need not know of the other questions."""
    ids = [question.question_id for question in questions]
    return Share(questions, screening.of(ids), {each: failed[each] for each in ids if each in failed}, bar)


@collecting_seldom()
def stored_portion(share: Share, source: Source) -> Portion:
    """Assess the trees of some questions, and return what they give."""
    spec = source.spec
    looked_for = [question for question in share.questions if question.question_id not in share.failed]
    assessed = {one.valued.tree.question.question_id: one for one in assess_window(looked_for, source)}
    trees = (
        assessed[question.question_id].valued
        if question.question_id in assessed
        else value_tree(Tree(question, {}, tuple(share.failed[question.question_id])), {}, spec.credit)
        for question in share.questions
    )
    portion = portion_of(trees, spec, share.screening, share.bar)
    if asks_judge(spec):
        portion.figures.judge = judge = UsageCount()
        for one in assessed.values():
            for completion in one.judged if one.valued.tree.complete else ():
                judge.add(completion)
    return portion
