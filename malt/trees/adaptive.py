"""Adaptive growth: leaves are spent where siblings may still disagree, and not where every further one would be alike.

Every generation first gets one critique with one refinement. From then on, round by round, a critique gets another
refinement and a generation another critique until it is settled. What a further leaf of the question is worth has the
posterior Beta(1/2 + right, 1/2 + wrong) over all of its leaves so far; a node is settled when

- a further leaf would agree with its label with more than the configured confidence, so that no pair is likely, and
- its label is the one that the full tree would give it, with at least that confidence (beta-binomial), and
- for a critique, its refinements agree: where they differ, each further one makes a pair for certain.

Siblings that are asked for in one request share their prompt's price: where one in four further leaves is likely to
disagree, all siblings that are left are asked for at once.

A round decides by what is known of the whole tree, so the tree depends on answers and grades alone and not on the
order in which they came. A node's value is the mean of the leaves that were asked for. Growth stops when they agree,
so this mean is biased away from 1/2, unlike that of the full tree: the manifest says so.
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
"""Of either parameter of the posterior (Jeffreys): questions tend to be answered nearly always rightly, or wrongly.

As much as that, or more, for nearly every model of which it is published (benchmarks/difficulty.py).
"""

_DOUBTFUL = 0.75
"""How likely it must be what a further leaf is worth for siblings to be asked for one at a time."""

Rewards = Mapping[Address, float | None]
"""What every leaf so far is worth; None where that is unknown."""


class Belief(NamedTuple):
    """What a further leaf of a question may be worth: the parameters of a Beta distribution."""

    right: float
    wrong: float

    @classmethod
    def after(cls, rewards: Iterable[float | None]) -> "Belief":
        known = [reward for reward in rewards if reward is not None]
        total = fsum(known)
        return cls(_PRIOR + total, _PRIOR + len(known) - total)

    @property
    def is_doubtful(self) -> bool:
        """Whether leaves are known, and neither right nor wrong is what a further one is likely to be."""
        total = self.right + self.wrong
        return total > 2 * _PRIOR and max(self.right, self.wrong) <= _DOUBTFUL * total

    def agrees(self, label: bool) -> float:
        """Return the probability that a further leaf is as a label says."""
        return (self.right if label else self.wrong) / (self.right + self.wrong)


@lru_cache(maxsize=100_000)
def at_least(right: int, leaves: int, belief: Belief) -> float:
    """Return the probability that so many further leaves are right: sums and products, alike on every machine."""
    return fsum(_exactly(count, leaves, belief) for count in range(max(0, right), leaves + 1))


def _exactly(right: int, leaves: int, belief: Belief) -> float:
    a, b = belief
    ways = prod(a + step for step in range(right)) * prod(b + step for step in range(leaves - right))
    return comb(leaves, right) * ways / prod(a + b + step for step in range(leaves))


@dataclass(frozen=True)
class Rule:
    """When a tree of this shape has told enough."""

    shape: tuple[int, ...]
    threshold: float
    confidence: float

    @classmethod
    def of(cls, spec: RunSpec) -> "Rule":
        return cls(spec.roles.branching, spec.credit.threshold, spec.growth.confidence)

    def next_round(
        self, nodes: Collection[Address], asked: Mapping[Address, int], rewards: Rewards
    ) -> dict[Address, int]:
        """Return how many children to have asked for by parent, where it is more than now; empty when all is settled.

        `asked` counts the children that were asked for so far, by parent.
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
        """Return how many children to have asked for: one more, or all where most of them will be needed anyway."""
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
        """Count the leaves of the full tree below a node that nobody asked for."""
        parents = _list_level(len(self.shape) - 1, asked)
        return prod(self.shape[len(node) :]) - sum(asked[parent] for parent in parents if parent[: len(node)] == node)


def _list_level(depth: int, nodes: Collection[Address]) -> list[Address]:
    return [node for node in sorted(nodes) if len(node) == depth]


async def grow_adaptively(
    question: Question, inputs: TreeInputs, reward: Callable[[Node], Awaitable[float | None]]
) -> Tree:
    """Grow one question's tree as far as it tells something; `reward` says what a leaf is worth, None if unknown.

    Samples have the keys that they have in the full tree. A branch that cannot be had is recorded and grows no more.
    """
    growing, rule = GrowingTree(question, inputs), Rule.of(inputs.spec)
    asked: dict[Address, int] = {}
    rewards: dict[Address, float | None] = {}

    async def expand(parent: Address, count: int) -> None:
        children, came = await growing.ask(parent, count)
        asked[parent] = count if came else rule.shape[len(parent)]
        leaves = (child for child in children if child.address.is_leaf and child.address not in rewards)
        await inputs.wait(judge(leaf) for leaf in leaves)

    async def judge(leaf: Node) -> None:
        rewards[leaf.address] = await reward(leaf)

    while due := rule.next_round(growing.nodes, asked, rewards):
        await inputs.wait(expand(parent, count) for parent, count in due.items())
    return growing.tree


def nodes_grown(rule: Rule, rewards: Rewards) -> set[Address]:
    """Return the nodes that a tree with these leaves has where it was grown by the rule.

    Raises `KeyError` where a leaf is missing that would have been asked for.
    """
    nodes, asked, seen = set[Address](), dict[Address, int](), dict[Address, float | None]()
    while due := rule.next_round(nodes, asked, seen):
        for parent, count in due.items():
            new = [parent.child(sample) for sample in range(asked.get(parent, 0), count)]
            nodes.update(new)
            seen.update((leaf, rewards[leaf]) for leaf in new if leaf.is_leaf)
            asked[parent] = count
    return nodes
