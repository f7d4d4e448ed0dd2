"""Trees that a report shows: all of a small version, a sample of a large one, within a size limit.

Questions are ranked by the hash of their id, so that versions of the same questions prefer the same ones.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from malt.config.roles import PLAYERS, Role
from malt.datasets.manifest import Failure, Manifest
from malt.datasets.rows.tables import QuestionRow, TrajectoryRow
from malt.sanitize import escape_controls

KEPT = 100
"""Maximum number of trees of each kind that a sample holds."""

_QuestionKind = Literal["mixed", "all wrong", "all right", "failed", "unknown"]
"""Outcome of a question: from the labels of its known leaves; `unknown` without any, `failed` without a whole tree."""
_SHARES: Mapping[_QuestionKind, int] = {"mixed": 2, "all wrong": 1, "all right": 1, "failed": 1, "unknown": 1}
"""Trees of each kind taken per turn; more mixed ones, since pairs come from them."""
_KIND_OF_LABELS: Mapping[frozenset[bool], _QuestionKind] = {
    frozenset({True}): "all right",
    frozenset({False}): "all wrong",
    frozenset({True, False}): "mixed",
    frozenset(): "unknown",
}

_ALL_BYTES = 4_000_000
"""Maximum size of all trees in one page."""
_TREE_BYTES = 150_000
"""Maximum size of one tree; its texts are cut until it fits."""
_CUTS = (4_000, 1_500, 400, 100)
"""Characters kept of each text, tried in this order."""
_CHILDREN = 6
"""Maximum number of children shown of each node."""
_FAILURES = 20
"""Maximum number of failed branches shown of each question."""

_ESCAPED = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})
"""Characters that could end a script element, or a line of it."""

_PLAIN_COLUMNS = ("status", "answer", "outcome", "grader", "error", "own_outcome", "own_answer")
"""Columns of a node that the page shows as they are."""


class _Sampled(NamedTuple):
    """Tree that may be shown. The smallest negative rank is dropped first."""

    negative_rank: int
    place: int
    """Position among all questions."""
    tree: bytes
    """Tree as JSON that is safe in a script element."""


RankBar = Mapping[_QuestionKind, int]
"""Negative rank that a tree must exceed to be kept, by kind."""
NO_BAR: RankBar = MappingProxyType({})


class TreeSample:
    """Sample of the trees added to it; with the `bar` of another sample, only those that the other would keep too."""

    def __init__(self, bar: RankBar = NO_BAR) -> None:
        self._places = 0
        self._bar = dict(bar)
        self._kept: dict[_QuestionKind, list[_Sampled]] = {kind: [] for kind in _SHARES}

    @property
    def bar(self) -> RankBar:
        """Negative ranks that further trees must exceed."""
        full = {kind: kept[0].negative_rank for kind, kept in self._kept.items() if len(kept) == KEPT}
        return {**self._bar, **full}

    def add(self, question: QuestionRow, nodes: Sequence[TrajectoryRow], failures: Sequence[Failure] = ()) -> None:
        """Add one question with its nodes (none if it failed) and its failed branches."""
        kind, rank = _kind_of(question, nodes), -rank_question(question["question_id"])
        if self._has_room(kind, rank):
            self._keep(kind, _Sampled(rank, self._places, _tree_json(question, nodes, failures)))
        self._places += 1

    def merge(self, other: "TreeSample") -> None:
        """Add the trees kept by another sample, whose questions come after those of this one."""
        for kind, kept in other._kept.items():
            for candidate in kept:
                if self._has_room(kind, candidate.negative_rank):
                    self._keep(kind, candidate._replace(place=self._places + candidate.place))
        self._places += other._places

    def _has_room(self, kind: _QuestionKind, negative_rank: int) -> bool:
        kept = self._kept[kind]
        if len(kept) == KEPT:
            return negative_rank > kept[0].negative_rank
        return kind not in self._bar or negative_rank > self._bar[kind]

    def _keep(self, kind: _QuestionKind, candidate: _Sampled) -> None:
        kept = self._kept[kind]
        (heapq.heappush if len(kept) < KEPT else heapq.heapreplace)(kept, candidate)

    @property
    def chosen(self) -> list[bytes]:
        """Chosen trees as JSON, in the order of their questions."""
        chosen, room = [], _ALL_BYTES
        for candidate in self._in_turn():
            if len(candidate.tree) <= room:
                chosen.append(candidate)
                room -= len(candidate.tree)
        return [candidate.tree for candidate in sorted(chosen, key=lambda each: each.place)]

    def _in_turn(self) -> Iterable[_Sampled]:
        """Return all candidates, alternating between kinds; within a kind by rank."""
        ordered = [
            (turn // _SHARES[kind], candidate)
            for kind, kept in self._kept.items()
            for turn, candidate in enumerate(sorted(kept, reverse=True))
        ]
        return [candidate for _, candidate in sorted(ordered, key=lambda each: each[0])]


def group_failures(manifest: Manifest) -> dict[str, list[Failure]]:
    failures: dict[str, list[Failure]] = {}
    for failure in manifest.failures:
        failures.setdefault(failure.question_id, []).append(failure)
    return failures


def rank_question(question_id: str) -> int:
    """Return a question's rank in a pseudo-random order that is the same on every machine."""
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def embed_json(value: object) -> bytes:
    """Write JSON that is safe in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPED).encode()


def _kind_of(question: QuestionRow, nodes: Iterable[TrajectoryRow]) -> _QuestionKind:
    if not question["complete"]:
        return "failed"
    labels = {row["label"] for row in nodes if row["role"] == PLAYERS[-1]}
    return _KIND_OF_LABELS[frozenset(label for label in labels if label is not None)]


def _tree_json(question: QuestionRow, nodes: Sequence[TrajectoryRow], failures: Sequence[Failure]) -> bytes:
    """Write a tree as JSON, its texts cut until it fits into `_TREE_BYTES` (or to the shortest cut)."""
    steps = {row["node_id"]: [int(sample) for sample in row["node_id"].split(".")] for row in nodes}
    shown = [row for row in nodes if max(steps[row["node_id"]]) < _CHILDREN]
    shown.sort(key=lambda row: steps[row["node_id"]])
    written = b""
    for most in _CUTS:
        about = {**_question_json(question, most), "kind": _kind_of(question, nodes), "hidden": len(nodes) - len(shown)}
        drawn = [_node_json(row, most) for row in shown]
        written = embed_json({**about, "nodes": drawn, **_failures_json(failures, most)})
        if len(written) <= _TREE_BYTES:
            break
    return written


def _question_json(question: QuestionRow, most: int) -> dict[str, object]:
    return {
        "id": escape_controls(question["question_id"]),
        "question": _cut(question["question"], most),
        "truth": _cut(question["ground_truth"], most),
        "choices": [_cut(choice, most) for choice in question["choices"]],
        "split": question["split"],
        "excluded": question["excluded"],
    }


def _failures_json(failures: Sequence[Failure], most: int) -> dict[str, object]:
    first = failures[:_FAILURES]
    shown = [{"role": each.role, "node": each.address, "reason": _cut(each.reason, most)} for each in first]
    return {"failures": shown, "failed": len(failures)}


def _node_json(row: TrajectoryRow, most: int) -> dict[str, object]:
    """Return the fields of a node that the page shows, without unknown ones."""
    plain = dict(row)
    shown: dict[str, object] = {
        "node": row["node_id"],
        "depth": PLAYERS.index(Role(row["role"])),
        "text": _cut(row["text"], most),
        "reasoning": row["reasoning"] and _cut(row["reasoning"], most),
        "value": row["value"] if row["value"] is None else round(row["value"], 4),
        "leaves": row["known_leaves"],
        "label": row["label"],
        "why": [_cut(line, most) for line in row["explanation"] or ()] if row["outcome"] else None,
        **{name: plain[name] and _cut(str(plain[name]), most) for name in _PLAIN_COLUMNS},
    }
    return {name: value for name, value in shown.items() if value is not None}


def _cut(text: str, most: int) -> str:
    """Cut a text to `most` characters, append the number cut off, and escape control characters."""
    rest = len(text) - most
    return escape_controls(text if rest <= 0 else f"{text[:most]}… [{rest:,} more characters]")
