"""The trees that a report shows: all of a small version, a sample of a large one, within bounds whatever their size.

A question is chosen by the digest of its id, so the same one is chosen in every version that it is in.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from malt.config.spec import PLAYERS, Role
from malt.datasets.manifest import Failure
from malt.datasets.rows.examples import QuestionRow, TrajectoryRow
from malt.sanitize import visible

Kind = Literal["mixed", "all wrong", "all right", "failed", "unknown"]
"""What became of a question: by the labels of its known leaves, none known, or no whole tree."""

SHARES: Mapping[Kind, int] = {"mixed": 2, "all wrong": 1, "all right": 1, "failed": 1, "unknown": 1}
"""How many of each kind are taken in turn: mixed ones are what pairs are made of."""
KEPT = 100
"""Trees of each kind held while others pass."""
ALL_BYTES = 4_000_000
"""Of all trees in one page."""
TREE_BYTES = 150_000
"""Of one tree; its texts are cut until it has less."""
CUTS = (4_000, 1_500, 400, 100)
"""Characters kept of each text, tried in this order."""
CHILDREN = 6
"""Children shown of each node."""
FAILURES = 20
"""Failed branches shown of each question."""

ESCAPED = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})
"""Signs that could end a script element, or a line of one."""

KIND_OF_LABELS: Mapping[frozenset[bool], Kind] = {
    frozenset({True}): "all right",
    frozenset({False}): "all wrong",
    frozenset({True, False}): "mixed",
    frozenset(): "unknown",
}

TOLD: tuple[Literal["status", "answer", "outcome", "grader", "error", "own_outcome", "own_answer"], ...] = (
    "status",
    "answer",
    "outcome",
    "grader",
    "error",
    "own_outcome",
    "own_answer",
)
"""Columns of a node that the page shows as they are."""

Told = str | float | bool | Sequence[str] | None


class Candidate(NamedTuple):
    """A tree that may be shown. The largest is the first to go."""

    negative_rank: int
    place: int
    """Among all questions."""
    tree: bytes
    """As JSON that may stand in a script element."""


Bar = Mapping[Kind, int]
"""The negative rank that a tree of a kind has to exceed to be kept."""
NO_BAR: Bar = MappingProxyType({})


class TreeSample:
    """Keeps some of the trees that pass; with the `bar` of another, only those that the other would keep too."""

    def __init__(self, bar: Bar = NO_BAR) -> None:
        self._places = 0
        self._bar = dict(bar)
        self._kept: dict[Kind, list[Candidate]] = {kind: [] for kind in SHARES}

    @property
    def bar(self) -> Bar:
        """What further trees have to exceed."""
        full = {kind: kept[0].negative_rank for kind, kept in self._kept.items() if len(kept) == KEPT}
        return {**self._bar, **full}

    def add(self, question: QuestionRow, nodes: Sequence[TrajectoryRow], failures: Sequence[Failure] = ()) -> None:
        """Take one question with its nodes, which are none where it failed, and its failed branches."""
        kind, rank = kind_of(question, nodes), -rank_of(question["question_id"])
        if self._has_room(kind, rank):
            self._keep(kind, Candidate(rank, self._places, tree_json(question, nodes, failures)))
        self._places += 1

    def merge(self, other: "TreeSample") -> None:
        """Take what another has kept of questions that come after these."""
        for kind, kept in other._kept.items():
            for candidate in kept:
                if self._has_room(kind, candidate.negative_rank):
                    self._keep(kind, candidate._replace(place=self._places + candidate.place))
        self._places += other._places

    def _has_room(self, kind: Kind, negative_rank: int) -> bool:
        kept = self._kept[kind]
        if len(kept) == KEPT:
            return negative_rank > kept[0].negative_rank
        return kind not in self._bar or negative_rank > self._bar[kind]

    def _keep(self, kind: Kind, candidate: Candidate) -> None:
        kept = self._kept[kind]
        (heapq.heappush if len(kept) < KEPT else heapq.heapreplace)(kept, candidate)

    @property
    def chosen(self) -> list[bytes]:
        """The chosen ones as JSON, in the order of their questions."""
        chosen, room = [], ALL_BYTES
        for candidate in self._in_turn():
            if len(candidate.tree) <= room:
                chosen.append(candidate)
                room -= len(candidate.tree)
        return [candidate.tree for candidate in sorted(chosen, key=lambda each: each.place)]

    def _in_turn(self) -> Iterable[Candidate]:
        """All candidates, kinds by turns, within a kind by rank."""
        ordered = [
            (turn // SHARES[kind], candidate)
            for kind, kept in self._kept.items()
            for turn, candidate in enumerate(sorted(kept, reverse=True))
        ]
        return [candidate for _, candidate in sorted(ordered, key=lambda each: each[0])]


def rank_of(question_id: str) -> int:
    """A number that says nothing about the question, and is always the same."""
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def kind_of(question: QuestionRow, nodes: Iterable[TrajectoryRow]) -> Kind:
    """What became of a question."""
    if not question["complete"]:
        return "failed"
    labels = {row["label"] for row in nodes if row["role"] == Role.REFINER}
    return KIND_OF_LABELS[frozenset(label for label in labels if label is not None)]


def tree_json(question: QuestionRow, nodes: Sequence[TrajectoryRow], failures: Sequence[Failure]) -> bytes:
    """Write a tree, its texts as long as there is room for."""
    shown = [row for row in nodes if max(map(int, row["node_id"].split("."))) < CHILDREN]
    written = b""
    for most in CUTS:
        written = embeddable(told_question(question, nodes, shown, failures, most))
        if len(written) <= TREE_BYTES:
            break
    return written


def embeddable(value: object) -> bytes:
    """Write JSON that may stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(ESCAPED).encode()


def told_question(
    question: QuestionRow,
    nodes: Sequence[TrajectoryRow],
    shown: Sequence[TrajectoryRow],
    failures: Sequence[Failure],
    most: int,
) -> dict[str, object]:
    """What the page tells of a question."""
    return {
        "id": visible(question["question_id"]),
        "kind": kind_of(question, nodes),
        "question": cut(question["question"], most),
        "truth": cut(question["ground_truth"], most),
        "choices": [cut(choice, most) for choice in question["choices"]],
        "split": question["split"],
        "excluded": question["excluded"],
        "hidden": len(nodes) - len(shown),
        "nodes": [told_node(row, most) for row in sorted(shown, key=lambda row: path_of(row["node_id"]))],
        "failures": [
            {"role": failure.role, "node": failure.address, "reason": cut(failure.reason, most)}
            for failure in failures[:FAILURES]
        ],
        "failed": len(failures),
    }


def told_node(row: TrajectoryRow, most: int) -> dict[str, Told]:
    """What the page tells of a node; what is not known is left out."""
    told: dict[str, Told] = {
        "node": row["node_id"],
        "depth": PLAYERS.index(Role(row["role"])),
        "text": cut(row["text"], most),
        "reasoning": row["reasoning"] and cut(row["reasoning"], most),
        "value": row["value"] if row["value"] is None else round(row["value"], 4),
        "leaves": row["known_leaves"],
        "label": row["label"],
        "why": [cut(line, most) for line in row["explanation"] or ()] if row["outcome"] else None,
        **{name: row[name] and cut(str(row[name]), most) for name in TOLD},
    }
    return {name: value for name, value in told.items() if value is not None}


def path_of(node_id: str) -> list[int]:
    """A node's sample numbers."""
    return [int(sample) for sample in node_id.split(".")]


def cut(text: str, most: int) -> str:
    """A text to show: no longer than that, what was cut off counted, and nothing in it that turns or hides text."""
    rest = len(text) - most
    return visible(text if rest <= 0 else f"{text[:most]}… [{rest:,} more characters]")
