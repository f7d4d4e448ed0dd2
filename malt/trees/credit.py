"""Credit: leaf rewards become node values and labels (MALT, arXiv 2412.01928, section 4.2); uncertainty of a value.

A node's value is the mean of the known leaves below it ("global pooling": every leaf weighs the same). A leaf whose
grade is unknown is left out; a node without a known leaf has no value and no label. Few leaves go into the mean, so
another tree of the same question would have other values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from math import fsum, lgamma, sqrt
from typing import TYPE_CHECKING, NamedTuple

from malt.config.roles import Role
from malt.config.spec import CreditSpec
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.sanitize import escape_controls, fold_lines
from malt.trees.tree import Address, Node, Tree

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ROUNDING = 1e-12
"""Values nearer than this count as equal: the mean of 0.9, 0.5 and 0.7 is just above 0.7 in floating point."""


@dataclass(frozen=True, slots=True)
class Value:
    """Value of a node: the mean reward of its known leaves, in [0, 1], and their number."""

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
    """Return the exactly rounded mean, so that a dataset's digest does not depend on the order of the leaves."""
    known = list(numbers)
    return fsum(known) / len(known)


def leaf_reward(grade: Grade, credit: CreditSpec) -> float | None:
    """Return the reward for a leaf's grade; a truncated leaf counts as `credit.truncated` says."""
    if grade.outcome is Outcome.TRUNCATED and credit.truncated == "unknown":
        return None
    return grade.reward


class OwnAnswer(NamedTuple):
    """Final answer that a node's own text gives, and its grade: for diagnosis, never for credit."""

    outcome: Outcome
    answer: str | None


class Length(NamedTuple):
    """Length of a node's prompt and of its text, in tokens."""

    prompt: int
    text: int


@dataclass(frozen=True, slots=True)
class ValuedTree:
    """A tree with its leaves' grades, every node's value, and the threshold for labels.

    `grades` holds every leaf, and also inner nodes that were judged themselves (`scope = "all"`).
    """

    tree: Tree
    grades: Mapping[Address, Grade] = field(repr=False)
    values: Mapping[Address, Value] = field(repr=False)
    threshold: float
    diagnosis: Mapping[Address, OwnAnswer] = field(default_factory=dict, repr=False)
    """Own answer of every generation and refinement, by the same graders for both; empty where none was made."""
    lengths: Mapping[Address, Length] = field(default_factory=dict, repr=False)
    """Length of every node; empty until measured."""

    def _repr_html_(self) -> str:
        question, nodes = self.tree.question, self.tree.nodes
        head = f"<p><b>{_escape_html(question.question)}</b><br>reference: {_escape_html(question.ground_truth)}</p>"
        return head + "".join(_render_node(self, nodes[address]) for address in sorted(nodes))

    def label(self, address: Address) -> bool | None:
        """Return a node's label: right, wrong, or None where no leaf below is known."""
        value = self.values.get(address)
        return None if value is None else value.label(self.threshold)

    def siblings(self, parent: Address) -> list[Node]:
        """Return the children of a node, in order."""
        depth = len(parent) + 1
        children = [address for address in self.tree.nodes if len(address) == depth and address[:-1] == parent]
        return [self.tree.nodes[address] for address in sorted(children)]

    def leaves_below(self, address: Address) -> list[Address]:
        """Return the leaves below a node, or the leaf itself, in order."""
        return sorted(leaf for leaf in self.grades if leaf.is_leaf and leaf[: len(address)] == address)

    def evaluation(self, address: Address) -> Evaluation | None:
        """Return a node's own evaluation if it has one, else the pooled evaluations of its known leaves, else None."""
        if (own := self.grades.get(address)) is not None and own.evaluation is not None:
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
    """Propagate the leaves' rewards up the tree."""
    rewards = {leaf.address: leaf_reward(grades[leaf.address], credit) for leaf in tree.leaves}
    return ValuedTree(tree, grades, propagate(rewards), credit.threshold)


def role_nodes(valued: ValuedTree, role: Role) -> list[Node]:
    """Return the nodes that one role wrote, in order."""
    addresses = sorted(address for address in valued.tree.nodes if address.role is role)
    return [valued.tree.nodes[address] for address in addresses]


_Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
_GRID = 2048
"""Number of points at which two Beta densities are compared; the error is below 1e-4 for up to 100 leaves a node."""


class Interval(NamedTuple):
    """A 95 % confidence interval for a node's true value, the limit for infinitely many leaves."""

    low: float
    high: float


def wilson(mean: float, leaves: float) -> Interval:
    """Return the Wilson score interval of a mean reward in [0, 1] over `leaves` leaves (Wilson 1927).

    A judge's rewards between 0 and 1 vary less than binary ones: for them the interval is wider than needed.
    """
    spread = _Z_95**2 / leaves
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * sqrt(mean * (1 - mean) / leaves + spread / (4 * leaves))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


@lru_cache(maxsize=100_000)
def order_probability(better: float, better_leaves: int, worse: float, worse_leaves: int) -> float:
    """Return the probability that the first node's true value is above the second's.

    Each true value has the posterior Beta(1 + s, 1 + n - s) after n leaves with s as their sum: a uniform prior.
    """
    import numpy as np

    points = (np.arange(_GRID) + 0.5) / _GRID
    first = _density(better * better_leaves, better_leaves, points)
    second = _density(worse * worse_leaves, worse_leaves, points)
    cumulative = np.cumsum(second) - second / 2
    return float((first * cumulative).sum())


def _density(total: float, leaves: int, points: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return a Beta density's weights at evenly spaced points; they sum to one."""
    import numpy as np

    a, b = 1 + total, 1 + leaves - total
    log_density = lgamma(a + b) - lgamma(a) - lgamma(b) + (a - 1) * np.log(points) + (b - 1) * np.log1p(-points)
    weights = np.exp(log_density)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


_START = 80
"""Number of first characters of a node's text shown beside its value."""


def _render_node(valued: ValuedTree, node: Node) -> str:
    value = valued.values.get(node.address)
    worth = "no value" if value is None else f"{value.mean:.2f} {'✓' if value.label(valued.threshold) else '✗'}"
    start = _escape_html(fold_lines(node.text)[:_START])
    summary = f"<summary>{node.address} {node.role.value}, {worth}: {start}</summary>"
    indent = 1.5 * (len(node.address) - 1)
    return f'<details style="margin-left:{indent}em">{summary}<pre>{_escape_html(node.text)}</pre></details>'


def _escape_html(text: str) -> str:
    return escape(escape_controls(text))
