"""Adaptive growth: further leaves are requested only where siblings may still disagree.

Every generation first gets one critique with one refinement. From then on, round by round, a critique gets another
refinement and a generation another critique until it is settled. The reward of a further leaf of the question has the
posterior Beta(1/2 + right, 1/2 + wrong) over all of its leaves so far; a node is settled when

- a further leaf would agree with its label with more than the configured confidence, so that no pair is likely, and
- the full tree would give it the same label, with at least that confidence (beta-binomial), and
- for a critique, its refinements agree: where they differ, each further one makes a pair for certain.

Siblings in one request share the cost of their prompt: where one in four further leaves is likely to disagree, all
remaining siblings are requested at once.

Each round is decided from the whole tree, so the tree depends only on answers and grades, not on the order of their
arrival. A node's value is the mean of the requested leaves. Growth stops when they agree, so this mean is biased away
from 1/2, unlike that of the full tree: the manifest says so.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import comb, floor, fsum, prod
from typing import NamedTuple

from malt.config.spec import RunSpec
from malt.questions.question import Question
from malt.trees.credit import ROUNDING, Value, propagate
from malt.trees.growth import GrowingTree, TreeInputs
from malt.trees.tree import Address, Node, Tree

_PRIOR = 0.5
"""Prior of either parameter of the posterior (Jeffreys): most questions are answered nearly always right, or wrong.

Published results of nearly every model show this at least as strongly as the prior (benchmarks/difficulty.py).
"""

_DOUBTFUL = 0.75
"""Probability of a further leaf's likelier label up to which all siblings are requested at once."""

Rewards = Mapping[Address, float | None]
"""Reward of every leaf so far; None where it is unknown."""


class Belief(NamedTuple):
    """Belief about the reward of a question's next leaf: the parameters of a Beta distribution."""

    right: float
    wrong: float

    @classmethod
    def after(cls, rewards: Iterable[float | None]) -> "Belief":
        known = [reward for reward in rewards if reward is not None]
        total = fsum(known)
        return cls(_PRIOR + total, _PRIOR + len(known) - total)

    @property
    def is_doubtful(self) -> bool:
        """Whether leaves are known, and a further one is not clearly likely to be right, nor to be wrong."""
        total = self.right + self.wrong
        return total > 2 * _PRIOR and max(self.right, self.wrong) <= _DOUBTFUL * total

    def agrees(self, label: bool) -> float:
        """Return the probability that a further leaf agrees with a label."""
        return (self.right if label else self.wrong) / (self.right + self.wrong)


@lru_cache(maxsize=100_000)
def at_least(right: int, leaves: int, belief: Belief) -> float:
    """Return the probability that at least `right` of `leaves` further leaves are right, equal on every machine."""
    return fsum(_exactly(count, leaves, belief) for count in range(max(0, right), leaves + 1))


def _exactly(right: int, leaves: int, belief: Belief) -> float:
    a, b = belief
    ways = prod(a + step for step in range(right)) * prod(b + step for step in range(leaves - right))
    return comb(leaves, right) * ways / prod(a + b + step for step in range(leaves))


@dataclass(frozen=True)
class Rule:
    """Rule that decides which nodes of a tree of this shape get further children."""

    shape: tuple[int, ...]
    threshold: float
    confidence: float

    @classmethod
    def of(cls, spec: RunSpec) -> "Rule":
        return cls(spec.roles.branching, spec.credit.threshold, spec.growth.confidence)

    def next_round(
        self, nodes: Collection[Address], asked: Mapping[Address, int], rewards: Rewards
    ) -> dict[Address, int]:
        """Return the new number of requested children of each parent that is to get more; empty when all are settled.

        `asked` counts the children requested so far, by parent.
        """
        belief, values = Belief.after(rewards.values()), propagate(rewards)
        new = {node: self._step(len(node), 0, belief) for node in nodes if not node.is_leaf and node not in asked}
        if not asked or new:
            return new or {Address(): self.shape[0]}
        due: dict[Address, int] = {}
        for depth in range(len(self.shape) - 1, 0, -1):
            growing = {node[:depth] for node in due}
            due |= {
                node: self._step(depth, asked[node], belief)
                for node in _list_level(depth, nodes)
                if asked[node] < self.shape[depth]
                and node not in growing
                and not self._is_settled(node, asked, values, belief)
            }
        return due

    def _step(self, depth: int, asked: int, belief: Belief) -> int:
        """Return the new number of requested children: one more, or all where most will be needed anyway."""
        return self.shape[depth] if belief.is_doubtful else asked + 1

    def _is_settled(
        self, node: Address, asked: Mapping[Address, int], values: Mapping[Address, Value], belief: Belief
    ) -> bool:
        value = values.get(node)
        if value is None or (len(node) == len(self.shape) - 1 and self._leaves_differ(node, asked[node], values)):
            return False
        label, known, unasked = value.label(self.threshold), value.known_leaves, self._count_unasked(node, asked)
        missing = self.threshold * (known + unasked) - value.mean * known
        is_right = at_least(floor(missing + ROUNDING) + 1, unasked, belief)
        return belief.agrees(label) > self.confidence and (is_right if label else 1 - is_right) >= self.confidence

    def _leaves_differ(self, parent: Address, asked: int, values: Mapping[Address, Value]) -> bool:
        known = [values[leaf] for sample in range(asked) if (leaf := parent.child(sample)) in values]
        return len({value.label(self.threshold) for value in known}) > 1

    def _count_unasked(self, node: Address, asked: Mapping[Address, int]) -> int:
        """Count the leaves of the full tree below a node that were not requested."""
        parents = _list_level(len(self.shape) - 1, asked)
        return prod(self.shape[len(node) :]) - sum(asked[parent] for parent in parents if parent[: len(node)] == node)


def _list_level(depth: int, nodes: Collection[Address]) -> list[Address]:
    return [node for node in sorted(nodes) if len(node) == depth]


async def grow_adaptively(
    question: Question, inputs: TreeInputs, reward: Callable[[Node], Awaitable[float | None]]
) -> Tree:
    """Grow one question's tree until every node is settled; `reward` returns a leaf's reward, None if unknown.

    Samples have the same keys as in the full tree. A branch whose request fails is recorded and grows no further.
    """
    growing, rule = GrowingTree(question, inputs), Rule.of(inputs.spec)
    asked: dict[Address, int] = {}
    rewards: dict[Address, float | None] = {}

    async def expand(parent: Address, count: int) -> None:
        children, is_whole = await growing.ask(parent, count)
        asked[parent] = count if is_whole else rule.shape[len(parent)]
        leaves = (child for child in children if child.address.is_leaf and child.address not in rewards)
        await inputs.wait(judge(leaf) for leaf in leaves)

    async def judge(leaf: Node) -> None:
        rewards[leaf.address] = await reward(leaf)

    while due := rule.next_round(growing.nodes, asked, rewards):
        await inputs.wait(expand(parent, count) for parent, count in due.items())
    return growing.tree


def nodes_grown(rule: Rule, rewards: Rewards) -> set[Address]:
    """Return the nodes of the tree that the rule grows if leaves have these rewards.

    Raises `KeyError` for a leaf that the rule requests and `rewards` lacks.
    """
    nodes, asked, seen = set[Address](), dict[Address, int](), dict[Address, float | None]()
    while due := rule.next_round(nodes, asked, seen):
        for parent, count in due.items():
            new = [parent.child(sample) for sample in range(asked.get(parent, 0), count)]
            nodes.update(new)
            seen.update((leaf, rewards[leaf]) for leaf in new if leaf.is_leaf)
            asked[parent] = count
    return nodes
