"""Decisions: what became of each candidate of one tree, and why. The gates themselves are in `selection`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

from malt.config.base import Recorded
from malt.datasets.rows.examples import Labelled, Pair, labelled, pairs, row_id, texts_of
from malt.datasets.rows.gates import Context, Gate, dpo_gates, kto_gates, sft_gates
from malt.trees.tree import Address

C = TypeVar("C", Labelled, Pair)


class Decision(Recorded):
    """What became of one candidate for a row."""

    row_id: str
    kept: bool
    """Whether the row is in its file."""
    passed: tuple[str, ...] = ()
    """The gates that it passed, in order."""
    left_out_by: str | None = None
    """The gate that it did not pass; None also where it never came to the gates."""
    why: str


class Fate(NamedTuple):
    """How far a candidate came: the gates that it passed, and the one that it did not."""

    passed: tuple[str, ...]
    dropped_by: str | None
    grounds: str = ""


class Decisions:
    """What became of one role's candidates in one tree. `stored` are the ids of the rows that the files hold."""

    def __init__(self, context: Context, stored: Collection[str]) -> None:
        self.valued = context.valued
        self.role = context.role
        self.stored = stored
        known = labelled(context.valued, context.role)
        self._known = {one.node.address: one for one in known}
        self._fates = {
            **self._fates_of("sft", [one for one in known if one.right], sft_gates(context)),
            **self._fates_of("kto", known, kto_gates(context)),
            **self._fates_of("dpo", pairs(known), dpo_gates(context)),
        }

    def of_text(self, kind: str, address: Address) -> Decision:
        """Say what became of a text as an `sft` or `kto` row."""
        one, name = self._known.get(address), self._id(kind, address)
        if one is None:
            return self._no_candidate(name, unlabelled(address))
        if kind == "sft" and not one.right:
            return self._no_candidate(name, "labelled wrong, and sft takes only what is labelled right")
        return self._decided(name)

    def pair(self, first: Address, second: Address) -> Pair | None:
        """Return two siblings as a candidate; None where they are none in this order."""
        chosen, rejected = self._known.get(first), self._known.get(second)
        return Pair(chosen, rejected) if chosen and rejected and chosen.right and not rejected.right else None

    def of_pair(self, first: Address, second: Address) -> Decision:
        """Say what became of two siblings as a `dpo` row."""
        pair, name = self.pair(first, second), self._id("dpo", first, second)
        if pair is None:
            return self._no_candidate(name, self._why_no_pair(first, second))
        return self._decided(name)

    def of_all(self, address: Address) -> Iterator[Decision]:
        """Say what became of a text: by itself, and paired with each of its siblings."""
        yield from (self.of_text(kind, address) for kind in ("sft", "kto"))
        for node in self.valued.siblings(address.parent):
            if node.address != address:
                is_chosen = self.pair(node.address, address) is None
                yield self.of_pair(address, node.address) if is_chosen else self.of_pair(node.address, address)

    def _fates_of(self, kind: str, candidates: Sequence[C], gates: Sequence[Gate[C]]) -> dict[str, Fate]:
        return fates(candidates, gates, lambda one: self._id(kind, *(text.node.address for text in texts_of(one))))

    def _why_no_pair(self, first: Address, second: Address) -> str:
        for address in (first, second):
            if address not in self._known:
                return unlabelled(address)
        if self.pair(second, first):
            return f"{second} is the one labelled right; the pair is {self._id('dpo', second, first)}"
        return f"both are labelled {'right' if self._known[first].right else 'wrong'}; a pair needs one of each"

    def _no_candidate(self, name: str, why: str) -> Decision:
        if name in self.stored:
            return Decision(row_id=name, kept=True, why=f"the file holds it, though {why}; see: malt verify")
        return Decision(row_id=name, kept=False, why=f"no candidate: {why}")

    def _decided(self, name: str) -> Decision:
        passed, gate, grounds = self._fates[name]
        kept = name in self.stored
        if gate is None:
            why = "kept" if kept else "no gate leaves it out, yet the file does not hold it; see: malt verify"
        else:
            why = f"left out by {gate}: {grounds}"
            why = f"the file holds it, though it should be {why}; see: malt verify" if kept else why
        return Decision(row_id=name, kept=kept, passed=passed, left_out_by=gate, why=why)

    def _id(self, kind: str, *addresses: Address) -> str:
        return row_id(f"{kind}-{self.role}", self.valued, *(self.valued.tree.nodes[each] for each in addresses))


def fates(candidates: Sequence[C], gates: Sequence[Gate[C]], name: Callable[[C], str]) -> dict[str, Fate]:
    """Send candidates through gates as `selection.sift` does, and note how far each came, by name."""
    found: dict[str, Fate] = {}
    passed: tuple[str, ...] = ()
    for gate in gates:
        kept = gate.keep(candidates)
        names = {name(each) for each in kept}
        dropped = [each for each in candidates if name(each) not in names]
        found.update((name(each), Fate(passed, gate.name, gate.why(each))) for each in dropped)
        candidates, passed = kept, (*passed, gate.name)
    return found | {name(each): Fate(passed, None) for each in candidates}


def unlabelled(address: Address) -> str:
    """Say why a node has no label."""
    return (
        f"{address} has no label, as {'its grade' if address.is_leaf else 'the grade of every leaf below'} is unknown"
    )
