"""Gate trace: what became of each candidate of one tree, and why. The gates themselves are in `gates`."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from malt.config.base import Recorded
from malt.datasets.rows.examples import Candidate, find_candidates, label_nodes, row_id
from malt.datasets.rows.gates import Context, gates_of
from malt.datasets.rows.tables import KINDS, TEXT_KINDS, Kind
from malt.trees.tree import Address


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


class _Passage(NamedTuple):
    """How far a candidate came: the gates that it passed, and the one that it did not."""

    passed: tuple[str, ...]
    dropped_by: str | None = None
    grounds: str = ""


class GateTrace:
    """What became of one role's candidates in one tree. `stored` are the ids of the rows that the files hold."""

    def __init__(self, context: Context, stored: Collection[str]) -> None:
        self.valued = context.valued
        self.role = context.role
        self.stored = stored
        known = label_nodes(context.valued, context.role)
        self._known = {one.node.address: one for one in known}
        self._passages = {
            self._id(kind, *addresses): passage
            for kind in KINDS
            for addresses, passage in _trace(kind, find_candidates(kind, known), context).items()
        }

    def decide(self, kind: Kind, *addresses: Address) -> Decision:
        """Say what became of a text as an `sft` or `kto` row, or of two siblings as a pair in this order."""
        name = self._id(kind, *addresses)
        passage, kept = self._passages.get(name), name in self.stored
        passed, gate, grounds = passage or _Passage(())
        if passage is None:
            why = self._why_no_candidate(kind, *addresses)
            why = f"the file holds it, though {why}; see: malt verify" if kept else f"no candidate: {why}"
        elif gate is None:
            why = "kept" if kept else "no gate leaves it out, yet the file does not hold it; see: malt verify"
        else:
            why = f"left out by {gate}: {grounds}"
            why = f"the file holds it, though it should be {why}; see: malt verify" if kept else why
        return Decision(row_id=name, kept=kept, passed=passed, left_out_by=gate, why=why)

    def decide_all(self, address: Address) -> Iterator[Decision]:
        """Say what became of a text: by itself, and paired with each of its siblings."""
        yield from (self.decide(kind, address) for kind in TEXT_KINDS)
        for node in self.valued.siblings(address.parent):
            if node.address != address:
                is_rejected = self.pair(node.address, address) is not None
                yield self.decide("dpo", *((node.address, address) if is_rejected else (address, node.address)))

    def pair(self, first: Address, second: Address) -> Candidate | None:
        """Return two siblings as a candidate; None where they are none in this order."""
        chosen, rejected = self._known.get(first), self._known.get(second)
        if not (chosen and rejected and chosen.is_right and not rejected.is_right):
            return None
        return Candidate((chosen, rejected))

    def _why_no_candidate(self, kind: Kind, *addresses: Address) -> str:
        for address in addresses:
            if address not in self._known:
                ungraded = "its grade" if address.is_leaf else "the grade of every leaf below"
                return f"{address} has no label, as {ungraded} is unknown"
        if kind == "sft":
            return "labelled negative, and sft takes only what is labelled positive"
        first, second = addresses
        if self.pair(second, first):
            return f"{second} is the one labelled positive; the pair is {self._id(kind, second, first)}"
        label = "positive" if self._known[first].is_right else "negative"
        return f"both are labelled {label}; a pair needs one of each"

    def _id(self, kind: Kind, *addresses: Address) -> str:
        return row_id(f"{kind}-{self.role}", self.valued, *addresses)


def _trace(kind: Kind, candidates: Sequence[Candidate], context: Context) -> dict[tuple[Address, ...], _Passage]:
    """Send candidates through gates as `select` does, and note how far each came."""
    found: dict[tuple[Address, ...], _Passage] = {}
    passed: tuple[str, ...] = ()
    for gate in gates_of(kind):
        kept = gate.keep(context, candidates)
        left = {one.addresses for one in kept}
        dropped = (one for one in candidates if one.addresses not in left)
        found.update((one.addresses, _Passage(passed, gate.name, gate.why(context, one))) for one in dropped)
        candidates, passed = kept, (*passed, gate.name)
    return found | {one.addresses: _Passage(passed) for one in candidates}
