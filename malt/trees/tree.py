"""Tree and Node: the texts that three roles wrote for one question, and their addresses.

The address of a node is its path of sample numbers: generation `2`, its first critique `2.0`, that one's second
refinement `2.0.1`. A leaf is a refinement. A tree with n samples a level has n + n² + n³ nodes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from malt.config.roles import PLAYERS, Role
from malt.llm.request import Completion, FinishReason, Message
from malt.questions.question import Question


class Address(tuple[int, ...]):
    """A path of sample numbers from the root; the root itself is the empty address."""

    __slots__ = ()

    def __str__(self) -> str:
        return dotted(self)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse an address written by `str`."""
        return cls(int(step) for step in text.split(".") if step)

    @property
    def parent(self) -> "Address":
        return Address(self[:-1])

    @property
    def path(self) -> "tuple[Address, ...]":
        """Addresses from below the root down to this one, which is the last."""
        return _lineage(self)

    @property
    def role(self) -> Role:
        """Role that writes the nodes at this depth."""
        return PLAYERS[len(self) - 1]

    @property
    def is_leaf(self) -> bool:
        """Whether this is the address of a refinement."""
        return len(self) == len(PLAYERS)

    def child(self, sample: int) -> "Address":
        return Address((*self, sample))


@lru_cache(maxsize=10_000)
def dotted(address: Address) -> str:
    """Format an address; cached, as all trees have the same few."""
    return ".".join(map(str, address))


@lru_cache(maxsize=10_000)
def _lineage(address: Address) -> tuple[Address, ...]:
    return tuple(Address(address[:depth]) for depth in range(1, len(address) + 1))


class NodeStatus(StrEnum):
    """Status of a node's text: whole (`ok`), truncated, empty, or refused."""

    OK = "ok"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    REFUSED = "refused"


_STATUS_OF_REASON: Mapping[str, NodeStatus] = {
    FinishReason.LENGTH: NodeStatus.TRUNCATED,
    FinishReason.CONTENT_FILTER: NodeStatus.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One text of the tree, and the messages that its role saw."""

    address: Address
    prompt: tuple[Message, ...]
    completion: Completion

    @property
    def role(self) -> Role:
        return self.address.role

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def status(self) -> NodeStatus:
        """Status by the finish reason, else by whether there is any text."""
        whole = NodeStatus.OK if self.text.strip() else NodeStatus.EMPTY
        return _STATUS_OF_REASON.get(self.completion.finish_reason, whole)


class FailedBranch(NamedTuple):
    """A request that failed after its retries: children of `address` are missing, or (from the judge) its grade."""

    question_id: str
    address: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Tree:
    """All nodes of one question by address, in depth-first order, and its failed branches."""

    question: Question
    nodes: Mapping[Address, Node] = field(repr=False)
    failures: tuple[FailedBranch, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no branch failed."""
        return not self.failures

    @property
    def leaves(self) -> Iterator[Node]:
        """Refinements, in order."""
        return (node for node in self.nodes.values() if node.address.is_leaf)
