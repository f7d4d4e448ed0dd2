"""Decisions: what became of each candidate of one tree, and why. The gates themselves are in `selection`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

from malt.datasets.examples import Labelled, Pair, labelled, pairs, row_id
from malt.datasets.manifest import Recorded
from malt.datasets.selection import Gate, dpo_gates, kto_gates, sft_gates
from malt.spec import DatasetSpec, Role
from malt.trees.credit import ValuedTree
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


class Decisions:
    """What became of one role's candidates in one tree. `stored` are the ids of the rows that the files hold."""

    def __init__(self, valued: ValuedTree, role: Role, spec: DatasetSpec, stored: Collection[str]) -> None:
        self.valued = valued
        self.role = role
        self.spec = spec
        self.stored = stored
        known = labelled(valued, role)
        self._known = {one.node.address: one for one in known}
        self._fates = {
            **fates([one for one in known if one.right], sft_gates(), lambda one: self._id("sft", address_of(one))),
            **fates(known, kto_gates(spec), lambda one: self._id("kto", address_of(one))),
            **fates(pairs(known), dpo_gates(role, spec), lambda pair: self._id("dpo", *addresses_of(pair))),
        }

    def of_text(self, kind: str, address: Address) -> Decision:
        """Say what became of a text as an `sft` or `kto` row."""
        one, name = self._known.get(address), self._id(kind, address)
        if one is None:
            return self._no_candidate(name, unlabelled(address))
        if kind == "sft" and not one.right:
            return self._no_candidate(name, "labelled wrong, and sft takes only what is labelled right")
        return self._decided(name, lambda gate: text_grounds(gate, one))

    def pair(self, first: Address, second: Address) -> Pair | None:
        """Return two siblings as a candidate; None where they are none in this order."""
        chosen, rejected = self._known.get(first), self._known.get(second)
        return Pair(chosen, rejected) if chosen and rejected and chosen.right and not rejected.right else None

    def of_pair(self, first: Address, second: Address) -> Decision:
        """Say what became of two siblings as a `dpo` row."""
        pair, name = self.pair(first, second), self._id("dpo", first, second)
        if pair is None:
            return self._no_candidate(name, self._why_no_pair(first, second))
        return self._decided(name, lambda gate: pair_grounds(gate, pair, self.spec))

    def of_all(self, address: Address) -> Iterator[Decision]:
        """Say what became of a text: by itself, and paired with each of its siblings."""
        yield from (self.of_text(kind, address) for kind in ("sft", "kto"))
        for node in self.valued.siblings(address.parent):
            if node.address != address:
                is_chosen = self.pair(node.address, address) is None
                yield self.of_pair(address, node.address) if is_chosen else self.of_pair(node.address, address)

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

    def _decided(self, name: str, grounds: Callable[[str], str]) -> Decision:
        passed, gate = self._fates[name]
        kept = name in self.stored
        if gate is None:
            why = "kept" if kept else "no gate leaves it out, yet the file does not hold it; see: malt verify"
        else:
            why = f"left out by {gate}: {grounds(gate)}"
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
        dropped = [name(each) for each in candidates if name(each) not in names]
        found.update((each, Fate(passed, gate.name)) for each in dropped)
        candidates, passed = kept, (*passed, gate.name)
    return found | {name(each): Fate(passed, None) for each in candidates}


def address_of(one: Labelled) -> Address:
    """Where a text stands."""
    return one.node.address


def addresses_of(pair: Pair) -> tuple[Address, Address]:
    """Where the two texts of a pair stand."""
    return address_of(pair.chosen), address_of(pair.rejected)


def unlabelled(address: Address) -> str:
    """Say why a node has no label."""
    return (
        f"{address} has no label, as {'its grade' if address.is_leaf else 'the grade of every leaf below'} is unknown"
    )


def text_grounds(gate: str, one: Labelled) -> str:
    """Say why a gate dropped a text."""
    match gate:
        case "not_whole":
            return f"the text is {one.node.status}"
        case "balance":
            most, which = ("right", "best") if one.right else ("wrong", "worst")
            return f"this question has more texts that are {most}, and only the {which} are kept"
    return "its rule is in [dataset] of the config"


def pair_grounds(gate: str, pair: Pair, spec: DatasetSpec) -> str:
    """Say why a gate dropped a pair."""
    match gate:
        case "generator_dpo":
            return "[dataset] generator_dpo is false"
        case "not_whole":
            flawed = [one.node for one in pair if not one.whole]
            return " and ".join(f"{node.address} is {node.status}" for node in flawed)
        case "min_margin":
            return f"a margin of {pair.margin:.6g}, and min_margin = {spec.min_margin:g}"
        case "min_confidence":
            return f"a confidence of {pair.confidence:.4f}, and min_confidence = {spec.min_confidence:g}"
        case "max_pairs_per_question":
            return f"{spec.max_pairs_per_question} of this question's pairs come before it, by margin, then confidence"
    return "its rule is in [dataset] of the config"
