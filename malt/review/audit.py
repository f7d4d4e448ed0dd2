"""Auditing a version: its leaves graded again by other graders, and what of its labels and rows would change.

No role is asked anything: the texts are in the version. A judge among the graders is asked through the store.
Streams: some questions' trees in memory at a time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, islice

from malt.config.base import Recorded
from malt.config.limits import Limits
from malt.config.roles import PLAYERS, Role
from malt.config.spec import GraderKind, RunSpec
from malt.datasets.rows.selection import select
from malt.datasets.rows.tables import Kind
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import StoredTree, exclusion_of, stored_trees
from malt.grading.grades import Grade, Outcome
from malt.llm.budget import Usage
from malt.questions.screening import Exclusion
from malt.review.grader_options import (
    Agreement,
    GraderChoice,
    OpenedGraders,
    VerdictPairs,
    grade_all,
    measure_agreement,
)
from malt.trees.credit import ValuedTree, value_tree
from malt.trees.pipeline import grade_text
from malt.trees.tree import Address, Node, NodeStatus

_TREES_AT_ONCE = 100
"""Trees between two waits for all that is under way."""

_OWN = "version"
"""How the grades that the version has are named among the graders."""

_Regraded = dict[Address, Grade]


class GraderVerdict(Recorded):
    """What one grader made of a leaf."""

    outcome: str
    read: str | None
    """The final answer it read."""
    said: str | None
    """Its grounds, or why it does not know."""


class LeafDifference(Recorded):
    """A leaf that one grader finds right and another wrong."""

    question_id: str
    node_id: str
    reference: str
    grades: dict[str, GraderVerdict]


class GraderPair(Agreement):
    """How far two graders agree over the leaves that were not cut off."""

    graders: tuple[str, str]


class RoleChange(Recorded):
    """What would become of one role's labels and rows with another grader's grades."""

    nodes: int = 0
    labels_changed: int = 0
    """Nodes whose label would be another; gaining or losing one counts."""
    sft_rows: int = 0
    """As published."""
    sft_added: int = 0
    sft_removed: int = 0
    dpo_pairs: int = 0
    """As published."""
    dpo_added: int = 0
    dpo_removed: int = 0


class AuditReport(Recorded):
    """What other graders say of a version's leaves."""

    version: str
    graded_by: tuple[str, ...]
    """The kinds behind the version's own grades."""
    kinds: tuple[str, ...]
    """The graders it was compared with, each by itself."""
    questions: int
    leaves: int
    truncated: int
    """Leaves cut off at max_tokens: no grader sees them, and they are in no comparison."""
    outcomes: dict[str, dict[str, int]]
    """Leaves by grader, then by outcome; `version` is the version itself."""
    agreement: tuple[GraderPair, ...]
    differences: tuple[LeafDifference, ...]
    changes: dict[str, dict[Role, RoleChange]]
    """By grader and role, if that grader's grades were the version's."""
    requests: int
    """Sent to a judge."""
    cost_usd: float | None
    """What the judge cost; None where that is not known."""
    wall_s: float


def audit(version: DatasetVersion, grading: GraderChoice, kinds: Sequence[GraderKind]) -> AuditReport:
    """Grade a version's leaves again with each of the kinds by itself.

    Raises `VersionError` where the version cannot be read, `InputError` for graders that cannot be used, and
    `RunStopped` at a limit.
    """
    started, spec = time.perf_counter(), version.spec
    graders = {kind: OpenedGraders(grading.by(kind)) for kind in kinds}
    count = _AuditCount(spec, kinds)

    async def count_trees() -> None:
        trees = stored_trees(version)
        while window := list(islice(trees, _TREES_AT_ONCE)):
            again = await _regrade([tree.valued for tree in window], graders, grading.limits)
            for tree, regraded in zip(window, again, strict=True):
                count.add(tree, regraded)

    asyncio.run(count_trees())
    return count.report(version, list(graders.values()), time.perf_counter() - started)


async def _regrade(
    trees: Sequence[ValuedTree], graders: Mapping[GraderKind, OpenedGraders], limits: Limits
) -> list[dict[GraderKind, _Regraded]]:
    """Grade the leaves of some trees with every grader; return each tree's grades by grader."""
    question_ids = [valued.tree.question.question_id for valued in trees]
    opened = {kind: each.for_questions(question_ids) for kind, each in graders.items()}
    places: list[tuple[int, GraderKind, Node]] = [
        (number, kind, leaf) for number, valued in enumerate(trees) for leaf in valued.tree.leaves for kind in graders
    ]
    grades = await grade_all(
        [partial(grade_text, trees[number].tree.question, leaf, opened[kind]) for number, kind, leaf in places], limits
    )
    found: list[dict[GraderKind, _Regraded]] = [{kind: {} for kind in graders} for _ in trees]
    for (number, kind, leaf), grade in zip(places, grades, strict=True):
        found[number][kind][leaf.address] = grade
    return found


_TrainingRows = Mapping[str, set[tuple[Address, ...]]]
"""One role's rows of one tree by the names of `RoleChange`, each by its nodes: of a pair the chosen one first."""


class _AuditCount:
    """Counts what graders say, tree after tree."""

    def __init__(self, spec: RunSpec, kinds: Sequence[GraderKind]) -> None:
        self.spec = spec
        self.kinds = kinds
        self.differences: list[LeafDifference] = []
        self._questions = self._leaves = self._truncated = 0
        self._outcomes: dict[str, Counter[str]] = {name: Counter() for name in (_OWN, *kinds)}
        pairs = combinations(self._outcomes, 2)
        self._verdicts: dict[tuple[str, str], VerdictPairs] = {pair: Counter() for pair in pairs}
        self._changes: Counter[tuple[str, Role, str]] = Counter()

    def add(self, tree: StoredTree, regraded: Mapping[GraderKind, _Regraded]) -> None:
        valued, excluded = tree.valued, exclusion_of(tree.question)
        self._questions += 1
        for leaf in valued.tree.leaves:
            own = valued.grades[leaf.address]
            self._add_leaf(valued, leaf, {_OWN: own, **{kind: regraded[kind][leaf.address] for kind in self.kinds}})
        published = {role: _training_rows(valued, role, self.spec, excluded) for role in PLAYERS}
        for kind in self.kinds:
            other = value_tree(valued.tree, {**valued.grades, **regraded[kind]}, self.spec.credit)
            other = replace(other, diagnosis=valued.diagnosis, lengths=valued.lengths)
            for role in PLAYERS:
                rows = _training_rows(other, role, self.spec, excluded)
                self._count_labels(kind, role, valued, other)
                self._count_rows(kind, role, published[role], rows)

    def report(self, version: DatasetVersion, graders: Sequence[OpenedGraders], wall_s: float) -> AuditReport:
        used = Usage()
        for each in graders:
            used.add(each.used)
        return AuditReport(
            version=version.reference,
            graded_by=self.spec.evaluator.kind,
            kinds=tuple(self.kinds),
            questions=self._questions,
            leaves=self._leaves,
            truncated=self._truncated,
            outcomes={
                name: {outcome.value: counts[outcome] for outcome in Outcome} for name, counts in self._outcomes.items()
            },
            agreement=tuple(
                GraderPair(graders=pair, **measure_agreement(verdicts).model_dump())
                for pair, verdicts in self._verdicts.items()
            ),
            differences=tuple(self.differences),
            changes={kind: {role: self._change(kind, role) for role in PLAYERS} for kind in self.kinds},
            requests=used.requests,
            cost_usd=used.cost_usd,
            wall_s=round(wall_s, 3),
        )

    def _add_leaf(self, valued: ValuedTree, leaf: Node, grades: Mapping[str, Grade]) -> None:
        self._leaves += 1
        for name, grade in grades.items():
            self._outcomes[name][grade.outcome] += 1
        if leaf.status is NodeStatus.TRUNCATED:
            self._truncated += 1
            return
        verdicts = {name: grade.outcome.truth for name, grade in grades.items()}
        for first, second in self._verdicts:
            self._verdicts[first, second][verdicts[first], verdicts[second]] += 1
        if {True, False} <= set(verdicts.values()):
            self.differences.append(_describe_difference(valued, leaf, grades))

    def _count_labels(self, kind: str, role: Role, valued: ValuedTree, other: ValuedTree) -> None:
        addresses = [address for address in valued.tree.nodes if address.role is role]
        changed = sum(valued.label(each) is not other.label(each) for each in addresses)
        self._changes[kind, role, "nodes"] += len(addresses)
        self._changes[kind, role, "labels_changed"] += changed

    def _count_rows(self, kind: str, role: Role, published: _TrainingRows, rows: _TrainingRows) -> None:
        for name, were in published.items():
            row_kind = name.partition("_")[0]
            self._changes[kind, role, name] += len(were)
            self._changes[kind, role, f"{row_kind}_added"] += len(rows[name] - were)
            self._changes[kind, role, f"{row_kind}_removed"] += len(were - rows[name])

    def _change(self, kind: str, role: Role) -> RoleChange:
        return RoleChange(**{name: self._changes[kind, role, name] for name in RoleChange.model_fields})


def _training_rows(valued: ValuedTree, role: Role, spec: RunSpec, excluded: Exclusion | None) -> _TrainingRows:
    selected = select(valued, role, spec.dataset, excluded)
    names: Mapping[str, Kind] = {"sft_rows": "sft", "dpo_pairs": "dpo"}
    return {name: {one.addresses for one in selected[kind].kept} for name, kind in names.items()}


def _describe_difference(valued: ValuedTree, leaf: Node, grades: Mapping[str, Grade]) -> LeafDifference:
    question = valued.tree.question

    def verdict(grade: Grade) -> GraderVerdict:
        grounds = "; ".join(grade.evaluation.explanation) if grade.evaluation else None
        return GraderVerdict(outcome=grade.outcome.value, read=grade.answer, said=grade.error or grounds or None)

    return LeafDifference(
        question_id=question.question_id,
        node_id=str(leaf.address),
        reference=question.ground_truth,
        grades={name: verdict(grade) for name, grade in grades.items()},
    )
