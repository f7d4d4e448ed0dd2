"""Audit of a version: grades its leaves with other graders, and counts the labels and rows that would change.

No generator, verifier or refiner is called: their texts are in the version. A judge's calls go through the store.
Streams: some questions' trees are in memory at a time.
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
"""Trees graded in one window; the next window starts when all are done."""

_OWN = "version"
"""Name of the version's own grades among the graders."""

_Regraded = dict[Address, Grade]


class GraderVerdict(Recorded):
    """Verdict of one grader on a leaf."""

    outcome: str
    read: str | None
    """Final answer that the grader read."""
    said: str | None
    """Explanation of the grade, or the reason why it is unknown."""


class LeafDifference(Recorded):
    """A leaf that one grader finds right and another wrong."""

    question_id: str
    node_id: str
    reference: str
    grades: dict[str, GraderVerdict]


class GraderPair(Agreement):
    """Agreement of two graders on the leaves that were not truncated."""

    graders: tuple[str, str]


class RoleChange(Recorded):
    """Changes of one role's labels and rows under another grader's grades."""

    nodes: int = 0
    labels_changed: int = 0
    """Nodes whose label would change; gaining or losing one counts."""
    sft_rows: int = 0
    """SFT rows in the published version."""
    sft_added: int = 0
    sft_removed: int = 0
    dpo_pairs: int = 0
    """Preference pairs in the published version."""
    dpo_added: int = 0
    dpo_removed: int = 0


class AuditReport(Recorded):
    """Comparison of a version's grades with those of other graders."""

    version: str
    graded_by: tuple[str, ...]
    """Grader kinds behind the version's own grades."""
    kinds: tuple[str, ...]
    """Graders that the version was compared with, each on its own."""
    questions: int
    leaves: int
    truncated: int
    """Leaves truncated at max_tokens: no grader sees them, and no comparison counts them."""
    outcomes: dict[str, dict[str, int]]
    """Number of leaves by grader, then by outcome; `version` stands for the version's own grades."""
    agreement: tuple[GraderPair, ...]
    differences: tuple[LeafDifference, ...]
    changes: dict[str, dict[Role, RoleChange]]
    """Changes by grader and role, if that grader's grades replaced the version's."""
    requests: int
    """Requests sent to a judge."""
    cost_usd: float | None
    """Cost of the judge; None where it is not known."""
    wall_s: float


def audit(version: DatasetVersion, grading: GraderChoice, kinds: Sequence[GraderKind]) -> AuditReport:
    """Grade a version's leaves again with each grader kind on its own.

    Raises `VersionError` if the version cannot be read, `InputError` for graders that cannot be used, and `RunStopped`
    at a limit.
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
"""One role's rows of one tree, by field of `RoleChange`; each row is its nodes' addresses, the chosen node first."""


class _AuditCount:
    """Running counts of outcomes, agreement and changes over the audited trees."""

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
