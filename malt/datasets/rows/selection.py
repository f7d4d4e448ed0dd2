"""Selection: which candidates become rows. Every kind of row has its gates; every loss is counted by its gate.

A candidate that one gate drops is not seen by the next, so the numbers add up: candidates = kept + dropped by each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from malt.config.roles import PLAYERS, Role
from malt.config.spec import DatasetSpec
from malt.datasets.manifest import LengthBias, LengthCounts, RowCounts
from malt.datasets.rows.examples import Candidate, find_candidates, label_nodes
from malt.datasets.rows.gates import Context, gates_of
from malt.datasets.rows.lengths import BiasCount, LengthCount
from malt.datasets.rows.tables import KINDS, Kind
from malt.datasets.stats.counts import Mergeable
from malt.questions.screening import Exclusion
from malt.trees.credit import ValuedTree


class Selected(NamedTuple):
    """What one tree gives one role and kind of row, and how many candidates each gate left out."""

    candidates: int
    kept: Sequence[Candidate]
    dropped: dict[str, int]


def select(
    valued: ValuedTree, role: Role, spec: DatasetSpec, excluded: Exclusion | None = None
) -> dict[Kind, Selected]:
    """Choose what one complete tree gives one role; `excluded` says why its question gives no rows at all."""
    known, context = label_nodes(valued, role), Context(valued, role, spec, excluded)
    return {kind: _pass_gates(kind, find_candidates(kind, known), context) for kind in KINDS}


def _pass_gates(kind: Kind, candidates: Sequence[Candidate], context: Context) -> Selected:
    kept, dropped = candidates, {}
    for gate in gates_of(kind):
        passed = gate.keep(context, kept)
        dropped[gate.name] = len(kept) - len(passed)
        kept = passed
    return Selected(len(candidates), kept, dropped)


class SelectionCount(Mergeable):
    """Adds up what passed and what did not, and how long it is, by role and kind of row."""

    def __init__(self) -> None:
        rows = [(role, kind) for role in PLAYERS for kind in KINDS]
        self._candidates: Counter[tuple[Role, Kind]] = Counter()
        self._dropped: dict[tuple[Role, Kind], Counter[str]] = {each: Counter() for each in rows}
        self._lengths = {each: LengthCount() for each in rows}
        self._bias = {role: BiasCount() for role in PLAYERS}

    def add(self, role: Role, selected: Mapping[Kind, Selected]) -> None:
        for kind, found in selected.items():
            self._candidates[role, kind] += found.candidates
            self._dropped[role, kind].update(found.dropped)
            for one in found.kept:
                self._lengths[role, kind].add(one.tokens)
        for pair in selected["dpo"].kept:
            self._bias[role].add(len(pair.chosen.text), len(pair.rejected.text))

    @property
    def counts(self) -> dict[str, dict[str, RowCounts]]:
        return {role.value: {kind: self._counts_of(role, kind) for kind in KINDS} for role in PLAYERS}

    @property
    def lengths(self) -> dict[str, dict[str, LengthCounts]]:
        return {role.value: {kind: self._lengths[role, kind].result for kind in KINDS} for role in PLAYERS}

    @property
    def length_bias(self) -> dict[str, LengthBias]:
        return {role.value: self._bias[role].result for role in PLAYERS}

    def _counts_of(self, role: Role, kind: Kind) -> RowCounts:
        candidates, dropped = self._candidates[role, kind], self._dropped[role, kind]
        return RowCounts(candidates=candidates, kept=candidates - dropped.total(), dropped=dict(dropped))
