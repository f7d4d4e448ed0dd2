"""Credit: from leaf rewards to node values to labels (MALT, arXiv 2412.01928, section 4.2).

A node is worth the mean of the known leaves below it ("global pooling": every leaf weighs the same). A leaf whose
grade is unknown is left out; a node without a known leaf has no value and no label.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import fsum
from typing import NamedTuple

from malt.config.roles import Role
from malt.config.spec import CreditSpec
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.trees.tree import Address, Node, Tree

ROUNDING = 1e-12
"""Two values nearer than this are one: 0.9, 0.5 and 0.7 have the mean 0.7, which floating point puts just above it."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a node is worth: the mean reward of its known leaves, in [0, 1], and how many of them there are."""

    mean: float
    known_leaves: int

    def label(self, threshold: float) -> bool:
        """Whether the node counts as right: strictly above the threshold, so a tie is wrong."""
        return self.mean - threshold > ROUNDING


def propagate(rewards: Mapping[Address, float | None]) -> dict[Address, Value]:
    """Return the value of every node that has a known leaf below it, the leaves themselves included."""
    below: dict[Address, list[float]] = {}
    for leaf, reward in rewards.items():
        if reward is not None:
            for address in leaf.path:
                below.setdefault(address, []).append(reward)
    return {address: Value(mean(known), len(known)) for address, known in below.items()}


def mean(numbers: Iterable[float]) -> float:
    """Average exactly rounded, so that the order in which leaves arrived cannot show in a dataset's digest."""
    known = list(numbers)
    return fsum(known) / len(known)


def leaf_reward(grade: Grade, credit: CreditSpec) -> float | None:
    """Return what a leaf's grade is worth; a truncated leaf counts as `credit.truncated` says."""
    if grade.outcome is Outcome.TRUNCATED and credit.truncated == "unknown":
        return None
    return grade.reward


class OwnAnswer(NamedTuple):
    """The final answer that a text itself gives, and what it is worth: for diagnosis, never for credit."""

    outcome: Outcome
    answer: str | None


class Length(NamedTuple):
    """How long a node's prompt and text are, in tokens."""

    prompt: int
    text: int


@dataclass(frozen=True, slots=True)
class ValuedTree:
    """A tree with its leaves' grades, every node's value, and what the threshold makes of it.

    `grades` holds every leaf, and inner nodes too where they were judged themselves (`scope = "all"`).
    """

    tree: Tree
    grades: Mapping[Address, Grade] = field(repr=False)
    values: Mapping[Address, Value] = field(repr=False)
    threshold: float
    diagnosis: Mapping[Address, OwnAnswer] = field(default_factory=dict, repr=False)
    """Every generation and refinement by the same graders, so that the two compare; empty where it was not made."""
    lengths: Mapping[Address, Length] = field(default_factory=dict, repr=False)
    """Of every node; empty until they were measured."""

    def _repr_html_(self) -> str:
        from malt.trees.notebook import render_tree

        return render_tree(self)

    def label(self, address: Address) -> bool | None:
        """Right, wrong, or None where no leaf below is known."""
        value = self.values.get(address)
        return None if value is None else value.label(self.threshold)

    def siblings(self, parent: Address) -> list[Node]:
        """The children of a node, in order."""
        depth = len(parent) + 1
        children = [address for address in self.tree.nodes if len(address) == depth and address[:-1] == parent]
        return [self.tree.nodes[address] for address in sorted(children)]

    def leaves_below(self, address: Address) -> list[Address]:
        """The leaves under a node, or the leaf itself, in order."""
        return sorted(leaf for leaf in self.grades if leaf.is_leaf and leaf[: len(address)] == address)

    def evaluation(self, address: Address) -> Evaluation | None:
        """A node's own evaluation where it was judged and could be, else its known leaves' pooled, else None."""
        own = self.grades.get(address)
        if own is not None and own.evaluation is not None:
            return own.evaluation
        return pool([self.grades[leaf].evaluation for leaf in self.leaves_below(address) if leaf in self.values])


def pool(evaluations: list[Evaluation | None]) -> Evaluation | None:
    """Average the scores of the known evaluations; keep each distinct explanation and match once, in order."""
    known = [evaluation for evaluation in evaluations if evaluation is not None]
    if not known:
        return None
    return Evaluation(
        correctness_score=mean(e.correctness_score for e in known),
        reasoning_score=mean(e.reasoning_score for e in known),
        explanation=tuple(dict.fromkeys(line for e in known for line in e.explanation)),
        key_matches=tuple(dict.fromkeys(match for e in known for match in e.key_matches)),
        score=mean(e.score for e in known),
    )


def value_tree(tree: Tree, grades: Mapping[Address, Grade], credit: CreditSpec) -> ValuedTree:
    """Pass the leaves' rewards up the tree."""
    rewards = {leaf.address: leaf_reward(grades[leaf.address], credit) for leaf in tree.leaves}
    return ValuedTree(tree, grades, propagate(rewards), credit.threshold)


def role_nodes(valued: ValuedTree, role: Role) -> list[Node]:
    """The nodes one role wrote, in order."""
    addresses = sorted(address for address in valued.tree.nodes if address.role is role)
    return [valued.tree.nodes[address] for address in addresses]
