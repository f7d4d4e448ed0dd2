"""Trees, grades and rewards for tests: fixed ones, and hypothesis strategies that draw them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from malt.config.roles import PLAYERS, Role
from malt.config.spec import CreditSpec
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import Completion, FinishReason, Message
from malt.questions.question import Question
from malt.trees.credit import OwnAnswer, ValuedTree, value_tree
from malt.trees.tree import Address, FailedBranch, Node, Tree

Branching = tuple[int, int, int]
Rewards = Mapping[Address, float | None]

PAPER: Branching = (3, 3, 3)


def addresses(branching: Branching = PAPER) -> list[Address]:
    """Return every address of a tree, depth first."""
    levels = [product(*map(range, branching[:depth])) for depth in range(1, len(branching) + 1)]
    return sorted(Address(path) for level in levels for path in level)


def leaf_addresses(branching: Branching = PAPER) -> list[Address]:
    """Return the addresses of all leaves, in order."""
    return [address for address in addresses(branching) if address.is_leaf]


def question_of(question_id: str) -> Question:
    """Return a question with a column of metadata."""
    return Question(
        question_id=question_id, question=f"What is {question_id}?", ground_truth="4", metadata={"level": 1}
    )


def node_of(
    question_id: str, address: Address, finish_reason: str = FinishReason.STOP, text: str | None = None
) -> Node:
    """Return a node whose text, key and measurements are derived from its address."""
    wrote = f"{address.role} {address} on {question_id}" if text is None else text
    completion = Completion(
        key=f"{question_id}/{address}",
        text=wrote,
        reasoning=None,
        finish_reason=finish_reason,
        model="served-model",
        prompt_tokens=10 * len(address),
        completion_tokens=len(wrote),
        cost_usd=0.001,
        latency_s=0.5,
    )
    asked = Message("user", f"{question_id} below {address.parent}")
    return Node(address, (Message("system", f"You are the {address.role}."), asked), completion)


def tree_of(
    question_id: str, branching: Branching = PAPER, finish_reasons: Mapping[Address, str] | None = None
) -> Tree:
    """Return a complete tree; `finish_reasons` marks texts that were cut off or refused."""
    reasons = finish_reasons or {}
    nodes = {
        address: node_of(question_id, address, reasons.get(address, FinishReason.STOP))
        for address in addresses(branching)
    }
    return Tree(question_of(question_id), nodes)


def saying(tree: Tree, texts: Mapping[str, str]) -> Tree:
    """Return the same tree with other texts at these addresses."""
    by_address = {Address.parse(place): text for place, text in texts.items()}
    others = {each: node_of(tree.question.question_id, each, text=text) for each, text in by_address.items()}
    return replace(tree, nodes={**tree.nodes, **others})


def incomplete_tree_of(question_id: str) -> Tree:
    """Return a tree whose first branch failed: it has no nodes."""
    failure = FailedBranch(question_id, "", Role.GENERATOR, "HTTP 500 from the provider, 5 attempts")
    return Tree(question_of(question_id), {}, (failure,))


def grade_of(reward: float | None) -> Grade:
    """Return a leaf's grade with this reward; None stands for an unknown outcome."""
    if reward is None:
        return Grade(Outcome.UNKNOWN, None, "llm", None, "the judge's reply could not be read")
    outcome = Outcome.RIGHT if reward > 0.5 else Outcome.WRONG
    evaluation = Evaluation(reward, reward, (f"worth {reward:g}",), ("4",) if reward > 0.5 else (), reward)
    return Grade(outcome, "4" if reward > 0.5 else "5", "llm", evaluation)


def valued(tree: Tree, rewards: Rewards | Sequence[float | None], credit: CreditSpec | None = None) -> ValuedTree:
    """Value a tree by its leaves' rewards, given by address or in order."""
    leaves = sorted(leaf.address for leaf in tree.leaves)
    by_leaf = rewards if isinstance(rewards, Mapping) else dict(zip(leaves, rewards, strict=True))
    return value_tree(tree, {leaf: grade_of(by_leaf[leaf]) for leaf in leaves}, credit or CreditSpec())


def branchings(most: int = 3) -> st.SearchStrategy[Branching]:
    """Draw the number of children per node at each level."""
    return st.tuples(*[st.integers(1, most)] * len(PLAYERS))


def rewards_of(branching: Branching, known: bool = False) -> st.SearchStrategy[dict[Address, float | None]]:
    """Draw a reward for every leaf: a verdict or a score, or an unknown one unless all are `known`."""
    scores = st.sampled_from([0.0, 1.0]) | st.integers(0, 100).map(lambda hundredth: hundredth / 100)
    reward = scores if known else scores | st.none()
    return st.fixed_dictionaries(dict.fromkeys(leaf_addresses(branching), reward))


@st.composite
def leaf_rewards(draw: st.DrawFn, known: bool = False) -> dict[Address, float | None]:
    """Draw the rewards of a tree of any shape."""
    return draw(rewards_of(draw(branchings()), known))


@st.composite
def valued_trees(draw: st.DrawFn, question_id: str = "q1") -> ValuedTree:
    """Draw a complete tree of any shape with rewards and a threshold; some texts are cut off or refused."""
    branching = draw(branchings())
    reasons = st.sampled_from([FinishReason.LENGTH, FinishReason.CONTENT_FILTER])
    cut = draw(st.dictionaries(st.sampled_from(addresses(branching)), reasons, max_size=4))
    threshold = draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]))
    tree = tree_of(question_id, branching, cut)
    return valued(tree, draw(rewards_of(branching)), CreditSpec(threshold=threshold))


@st.composite
def diagnosed_trees(draw: st.DrawFn) -> ValuedTree:
    """Draw a tree of any shape whose generations and refinements have a diagnosis."""
    tree = draw(valued_trees())
    answers = st.builds(OwnAnswer, st.sampled_from(Outcome), st.sampled_from(["4", "**4**", "5", None]))
    answering = [address for address in tree.tree.nodes if address.role is not Role.VERIFIER]
    return replace(tree, diagnosis=draw(st.fixed_dictionaries(dict.fromkeys(answering, answers))))
