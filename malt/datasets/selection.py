"""Selection: which candidates become rows. A row of gates for each kind of row; every loss is counted by its gate.

A candidate that one gate drops is not seen by the next, so the numbers add up: candidates = kept + dropped by each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from malt.datasets.examples import Labelled, Pair, dpo_row, kto_row, labelled, pairs, sft_row
from malt.datasets.manifest import RowCounts
from malt.spec import PLAYERS, DatasetSpec, Role
from malt.trees.credit import ROUNDING, ValuedTree

C = TypeVar("C")

Candidates = Sequence[C]
"""What one tree offers for one role's rows of one kind, in the order of the tree."""


class Gate(NamedTuple, Generic[C]):
    """A reason to leave rows out: `keep` returns the candidates that pass, in their order."""

    name: str
    keep: Callable[[Candidates[C]], Candidates[C]]


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


def select(valued: ValuedTree, role: Role, spec: DatasetSpec) -> Selected:
    """Choose what one complete tree gives one role."""
    known = labelled(valued, role)
    return Selected(
        sft=sift([one for one in known if one.right], sft_gates()),
        dpo=sift(pairs(known), dpo_gates(role, spec)),
        kto=sift(known, kto_gates(spec)),
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


def sft_gates() -> list[Gate[Labelled]]:
    """The gates of supervised examples."""
    return [Gate("not_whole", whole)]


def kto_gates(spec: DatasetSpec) -> list[Gate[Labelled]]:
    """The gates of unpaired labels."""
    return [Gate("not_whole", whole), Gate("balance", balanced if spec.balance == "labels" else everything)]


def dpo_gates(role: Role, spec: DatasetSpec) -> list[Gate[Pair]]:
    """The gates of preference pairs."""
    wanted = role is not Role.GENERATOR or spec.generator_dpo
    return [
        Gate("generator_dpo", everything if wanted else nothing),
        Gate("not_whole", whole_pairs),
        Gate("min_margin", partial(apart, least=spec.min_margin)),
        Gate("min_confidence", partial(sure, least=spec.min_confidence)),
        Gate("max_pairs_per_question", partial(strongest, most=spec.max_pairs_per_question)),
    ]


def everything(candidates: Candidates[C]) -> Candidates[C]:
    """Keep all: the gate is open."""
    return candidates


def nothing(candidates: Candidates[C]) -> Candidates[C]:
    """Keep none: the gate is shut."""
    return candidates[:0]


def whole(candidates: Candidates[Labelled]) -> list[Labelled]:
    """Keep texts that are whole."""
    return [one for one in candidates if one.whole]


def whole_pairs(candidates: Candidates[Pair]) -> list[Pair]:
    """Keep pairs of two whole texts."""
    return [pair for pair in candidates if pair.chosen.whole and pair.rejected.whole]


def apart(candidates: Candidates[Pair], least: float) -> list[Pair]:
    """Keep pairs of at least this margin."""
    return [pair for pair in candidates if pair.margin - least > -ROUNDING]


def sure(candidates: Candidates[Pair], least: float) -> Candidates[Pair]:
    """Keep pairs of at least this confidence, which is not worked out where all would pass."""
    return [pair for pair in candidates if pair.confidence >= least] if least > 0 else candidates


def strongest(candidates: Candidates[Pair], most: int | None) -> Candidates[Pair]:
    """Keep the pairs of largest margin, among equal ones of largest confidence, then the first ones."""
    if most is None or len(candidates) <= most:
        return candidates
    # Margins that only floating point tells apart are equal.
    strengths = [(round(pair.margin, 12), pair.confidence) for pair in candidates]
    best = sorted(range(len(candidates)), key=strengths.__getitem__, reverse=True)[:most]
    return [candidates[place] for place in sorted(best)]


def balanced(candidates: Candidates[Labelled]) -> list[Labelled]:
    """Keep as many right as wrong: the right ones of highest value, the wrong ones of lowest, the first among equals.

    A question whose texts all have one label keeps none.
    """
    right = sorted((one for one in candidates if one.right), key=lambda one: -one.value.mean)
    wrong = sorted((one for one in candidates if not one.right), key=lambda one: one.value.mean)
    each = min(len(right), len(wrong))
    kept = {one.node.address for one in right[:each] + wrong[:each]}
    return [one for one in candidates if one.node.address in kept]


class SelectionCount:
    """Adds up what passed and what did not, by role and kind of row."""

    def __init__(self) -> None:
        self._candidates: Counter[tuple[Role, str]] = Counter()
        self._dropped: dict[tuple[Role, str], Counter[str]] = {
            (role, kind): Counter() for role in PLAYERS for kind in Selected._fields
        }

    def add(self, role: Role, selected: Selected) -> None:
        """Count what one tree gave one role."""
        for kind, sifted in selected._asdict().items():
            self._candidates[role, kind] += sifted.candidates
            self._dropped[role, kind].update(sifted.dropped)

    @property
    def counts(self) -> dict[str, dict[str, RowCounts]]:
        """All counts so far, by role, then by kind of row."""
        return {role.value: {kind: self._counts_of(role, kind) for kind in Selected._fields} for role in PLAYERS}

    def _counts_of(self, role: Role, kind: str) -> RowCounts:
        candidates, dropped = self._candidates[role, kind], self._dropped[role, kind]
        return RowCounts(candidates=candidates, kept=candidates - dropped.total(), dropped=dict(dropped))
