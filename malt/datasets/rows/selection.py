"""Selection of the candidates that become rows, their lengths, and the reasons why the others were left out.

Every loss is counted by its gate. A gate does not see the candidates that an earlier one dropped, so the numbers add
up: candidates = kept + dropped by each. Tokens are those of the contents: a chat template adds a few for every turn.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from malt.config.base import Recorded
from malt.config.roles import PLAYERS, Role
from malt.config.spec import DatasetSpec
from malt.datasets.measures import LengthBias, LengthCounts, RowCounts
from malt.datasets.rows.examples import Candidate, find_candidates, label_nodes, row_id
from malt.datasets.rows.gates import Context, Gate, gates_of
from malt.datasets.rows.tables import KINDS, TEXT_KINDS, Kind
from malt.datasets.stats.counts import Mergeable
from malt.errors import ConfigError
from malt.grading.answers import without_stop_tokens
from malt.llm.request import Message
from malt.questions.screening import Exclusion
from malt.trees.credit import Length, ValuedTree
from malt.trees.tree import Address

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS_PER_TOKEN = 4
CountTokens = Callable[[str], int]


def token_counter(spec: DatasetSpec) -> CountTokens:
    """Return the token counter that a spec names. Raises `ConfigError` where its tokenizer cannot be loaded."""
    return estimate_tokens if spec.tokenizer is None else _load_tokenizer(spec.tokenizer)


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens from the characters, four to a token."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


@lru_cache
def _load_tokenizer(name: str) -> CountTokens:
    tokenizer = _open_tokenizer(name)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _open_tokenizer(name: str) -> "Tokenizer":
    """Open a tokenizer: a `tokenizer.json`, a folder that holds one, or a model on the Hub."""
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    is_file = file.is_file() or file.suffix == ".json"
    try:
        return Tokenizer.from_file(str(file)) if is_file else Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare `Exception`
        raise ConfigError(
            f"dataset.tokenizer = {name!r} cannot be loaded ({error}); name a tokenizer.json or a model on the Hub"
        ) from error


def measure_lengths(valued: ValuedTree, count: CountTokens) -> ValuedTree:
    """Return a tree with the lengths of all of its nodes; the prompt that siblings share is tokenized once."""
    prompts: dict[Address, int] = {}

    def prompt_length(parent: Address, prompt: Iterable[Message]) -> int:
        if parent not in prompts:
            prompts[parent] = sum(count(message.content) for message in prompt)
        return prompts[parent]

    lengths = {
        address: Length(prompt_length(address.parent, node.prompt), count(without_stop_tokens(node.text)))
        for address, node in valued.tree.nodes.items()
    }
    return replace(valued, lengths=lengths)


def summarise_lengths(rows: Counter[int]) -> LengthCounts:
    """Summarise lengths; `rows` holds the number of rows of each length."""
    return LengthCounts(
        rows=rows.total(),
        mean=round(sum(length * count for length, count in rows.items()) / max(rows.total(), 1), 1),
        median=quantile(rows, 0.5),
        p95=quantile(rows, 0.95),
        longest=max(rows, default=0),
    )


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the least length that this share of the rows does not exceed; 0 where there are no rows."""
    left = share * sum(counts.values())
    for length in sorted(counts):
        left -= counts[length]
        if left <= 0:
            return length
    return 0


class Selected(NamedTuple):
    """One tree's candidates for one role and kind of row: their number, those kept, and how many each gate dropped."""

    candidates: int
    kept: Sequence[Candidate]
    dropped: dict[str, int]


def select(
    valued: ValuedTree, role: Role, spec: DatasetSpec, excluded: Exclusion | None = None
) -> dict[Kind, Selected]:
    """Choose one role's rows from one complete tree; `excluded` is the reason why its question gives no rows at all."""
    known, context = label_nodes(valued, role), Context(valued, role, spec, excluded)
    return {kind: _pass_gates(kind, find_candidates(kind, known), context) for kind in KINDS}


def _pass_gates(kind: Kind, candidates: Sequence[Candidate], context: Context) -> Selected:
    kept, dropped = candidates, {}
    for gate, before, kept in _walk_gates(kind, candidates, context):
        dropped[gate.name] = len(before) - len(kept)
    return Selected(len(candidates), kept, dropped)


def _walk_gates(
    kind: Kind, candidates: Sequence[Candidate], context: Context
) -> Iterator[tuple[Gate, Sequence[Candidate], Sequence[Candidate]]]:
    """Yield every gate in turn, the candidates that reached it, and those that passed."""
    for gate in gates_of(kind):
        passed = gate.keep(context, candidates)
        yield gate, candidates, passed
        candidates = passed


class SelectionCount(Mergeable):
    """Counter of kept and dropped candidates, and of the lengths of kept ones, by role and kind of row."""

    def __init__(self) -> None:
        self._candidates: Counter[tuple[Role, Kind]] = Counter()
        self._dropped: dict[tuple[Role, Kind], Counter[str]] = {each: Counter() for each in product(PLAYERS, KINDS)}
        self._lengths: dict[tuple[Role, Kind], Counter[int]] = {each: Counter() for each in product(PLAYERS, KINDS)}
        """Number of rows of each length in tokens."""
        self._bias: dict[Role, Counter[str]] = {role: Counter() for role in PLAYERS}

    def add(self, role: Role, selected: Mapping[Kind, Selected]) -> None:
        for kind, found in selected.items():
            self._candidates[role, kind] += found.candidates
            self._dropped[role, kind].update(found.dropped)
            self._lengths[role, kind].update(one.tokens for one in found.kept)
        for pair in selected["dpo"].kept:
            chosen, rejected = (len(each.text) for each in pair.texts)
            longer, shorter = chosen > rejected, chosen < rejected
            self._bias[role].update(pairs=1, chosen=chosen, rejected=rejected, longer=longer, shorter=shorter)

    @property
    def counts(self) -> dict[str, dict[str, RowCounts]]:
        return {role.value: {kind: self._counts_of(role, kind) for kind in KINDS} for role in PLAYERS}

    @property
    def lengths(self) -> dict[str, dict[str, LengthCounts]]:
        return {role.value: {kind: summarise_lengths(self._lengths[role, kind]) for kind in KINDS} for role in PLAYERS}

    @property
    def length_bias(self) -> dict[str, LengthBias]:
        return {role.value: _length_bias(self._bias[role]) for role in PLAYERS}

    def _counts_of(self, role: Role, kind: Kind) -> RowCounts:
        candidates, dropped = self._candidates[role, kind], self._dropped[role, kind]
        return RowCounts(candidates=candidates, kept=candidates - dropped.total(), dropped=dict(dropped))


def _length_bias(counts: Counter[str]) -> LengthBias:
    """Return how lengths differ: a model could learn them in place of quality."""
    return LengthBias(
        pairs=counts["pairs"],
        chosen_characters=round(counts["chosen"] / max(counts["pairs"], 1), 1),
        rejected_characters=round(counts["rejected"] / max(counts["pairs"], 1), 1),
        chosen_longer=counts["longer"],
        chosen_shorter=counts["shorter"],
    )


class Decision(Recorded):
    """Outcome of one text or pair as a candidate for a row."""

    row_id: str
    kept: bool
    """Whether the row is in its file."""
    passed: tuple[str, ...] = ()
    """Gates that the candidate passed, in order."""
    left_out_by: str | None = None
    """Gate that rejected the candidate; None also for a text or pair that is no candidate."""
    why: str


class _Passage(NamedTuple):
    """Gates that a candidate passed, and the one that rejected it."""

    passed: tuple[str, ...]
    dropped_by: str | None = None
    grounds: str = ""


class GateTrace:
    """Decisions on one role's candidates in one tree. `stored` holds the ids of the rows in the files."""

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
        """Return the decision on a text as an `sft` or `kto` row, or on two siblings as a pair in this order."""
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
        """Yield the decisions on a text: by itself, and paired with each of its siblings."""
        yield from (self.decide(kind, address) for kind in TEXT_KINDS)
        for node in self.valued.siblings(address.parent):
            if node.address != address:
                is_rejected = self.pair(node.address, address) is not None
                yield self.decide("dpo", *((node.address, address) if is_rejected else (address, node.address)))

    def pair(self, first: Address, second: Address) -> Candidate | None:
        """Return two siblings as a pair; None unless the first is labelled right and the second wrong."""
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
    """Return each candidate's passage through the gates, by its addresses."""
    found: dict[tuple[Address, ...], _Passage] = {}
    kept, passed = candidates, tuple[str, ...]()
    for gate, before, kept in _walk_gates(kind, candidates, context):
        passing = {one.addresses for one in kept}
        dropped = (one for one in before if one.addresses not in passing)
        found.update((one.addresses, _Passage(passed, gate.name, gate.explain(context, one))) for one in dropped)
        passed = (*passed, gate.name)
    return found | {one.addresses: _Passage(passed) for one in kept}
