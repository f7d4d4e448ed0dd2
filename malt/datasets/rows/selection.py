"""Selection: which candidates become rows. A row of gates for each kind of row; every loss is counted by its gate.

A candidate that one gate drops is not seen by the next, so the numbers add up: candidates = kept + dropped by each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from malt.config.spec import PLAYERS, DatasetSpec, Role
from malt.datasets.manifest import LengthBias, LengthCounts, RowCounts
from malt.datasets.rows.examples import Labelled, Pair, dpo_row, kto_row, labelled, pairs, sft_row, texts_of
from malt.datasets.rows.gates import Candidates, Context, Gate, dpo_gates, kto_gates, length_of, sft_gates
from malt.datasets.rows.lengths import BiasCount, LengthCount
from malt.questions.screening import Exclusion
from malt.trees.credit import ValuedTree

C = TypeVar("C", Labelled, Pair)


class Sifted(NamedTuple, Generic[C]):
    """What passed all gates, and how many stayed behind at each."""

    candidates: int
    kept: Candidates[C]
    dropped: dict[str, int]


class Selected(NamedTuple):
    """One tree's candidates for one role, sifted; the fields are named after the kinds of rows."""

    sft: Sifted[Labelled]
    dpo: Sifted[Pair]
    kto: Sifted[Labelled]


def select(valued: ValuedTree, role: Role, spec: DatasetSpec, excluded: Exclusion | None = None) -> Selected:
    """Choose what one complete tree gives one role; `excluded` says why its question gives no rows at all."""
    known, context = labelled(valued, role), Context(valued, role, spec, excluded)
    return Selected(
        sft=sift([one for one in known if one.right], sft_gates(context)),
        dpo=sift(pairs(known), dpo_gates(context)),
        kto=sift(known, kto_gates(context)),
    )


def rows_by_kind(valued: ValuedTree, role: Role, selected: Selected) -> dict[str, Iterator[Mapping[str, object]]]:
    """Write what was kept as rows, by kind."""
    return {
        "sft": (sft_row(valued, role, one) for one in selected.sft.kept),
        "dpo": (dpo_row(valued, role, pair) for pair in selected.dpo.kept),
        "kto": (kto_row(valued, role, one) for one in selected.kto.kept),
    }


def sift(candidates: Candidates[C], gates: Sequence[Gate[C]]) -> Sifted[C]:
    """Send candidates through gates, one after another."""
    kept, dropped = candidates, {}
    for gate in gates:
        passed = gate.keep(kept)
        dropped[gate.name] = len(kept) - len(passed)
        kept = passed
    return Sifted(len(candidates), kept, dropped)


class SelectionCount:
    """Adds up what passed and what did not, and how long it is, by role and kind of row."""

    def __init__(self) -> None:
        rows = [(role, kind) for role in PLAYERS for kind in Selected._fields]
        self._candidates: Counter[tuple[Role, str]] = Counter()
        self._dropped: dict[tuple[Role, str], Counter[str]] = {each: Counter() for each in rows}
        self._lengths = {each: LengthCount() for each in rows}
        self._bias = {role: BiasCount() for role in PLAYERS}

    def add(self, role: Role, selected: Selected) -> None:
        """Count what one tree gave one role."""
        for kind, sifted in selected._asdict().items():
            self._candidates[role, kind] += sifted.candidates
            self._dropped[role, kind].update(sifted.dropped)
            for one in sifted.kept:
                self._lengths[role, kind].add(length_of(one))
        for pair in selected.dpo.kept:
            self._bias[role].add(*(len(text.node.text) for text in texts_of(pair)))

    def merge(self, other: "SelectionCount") -> None:
        """Count what another has counted."""
        self._candidates.update(other._candidates)
        for each, dropped in self._dropped.items():
            dropped.update(other._dropped[each])
            self._lengths[each].merge(other._lengths[each])
        for role, bias in self._bias.items():
            bias.merge(other._bias[role])

    @property
    def counts(self) -> dict[str, dict[str, RowCounts]]:
        """All counts so far, by role, then by kind of row."""
        return {role.value: {kind: self._counts_of(role, kind) for kind in Selected._fields} for role in PLAYERS}

    @property
    def lengths(self) -> dict[str, dict[str, LengthCounts]]:
        """The lengths of what passed, by role, then by kind of row."""
        return {role.value: {kind: self._lengths[role, kind].result for kind in Selected._fields} for role in PLAYERS}

    @property
    def length_bias(self) -> dict[str, LengthBias]:
        """The lengths of chosen and rejected texts, by role."""
        return {role.value: self._bias[role].result for role in PLAYERS}

    def _counts_of(self, role: Role, kind: str) -> RowCounts:
        candidates, dropped = self._candidates[role, kind], self._dropped[role, kind]
        return RowCounts(candidates=candidates, kept=candidates - dropped.total(), dropped=dict(dropped))
