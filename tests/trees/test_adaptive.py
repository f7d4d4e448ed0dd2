"""Adaptive growth: the leaves it asks for, labels as in the full tree, and decisions from the store alone."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt.config.limits import Limits
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, Roles, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import CreditSpec, EvaluatorSpec, GrowthSpec, RunSpec
from malt.llm.client.completers import StoreCompleter, make_completer
from malt.llm.client.session import open_session
from malt.llm.request import Completion, CompletionRequest, FinishReason, RequestFailed
from malt.llm.store.samples import Store
from malt.prompts import load_prompts
from malt.questions.question import Question
from malt.trees.adaptive import Belief, Rule, at_least, grow_adaptively, nodes_grown
from malt.trees.credit import ValuedTree, propagate
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import assess
from malt.trees.tree import Address, Node, Tree
from tests.providers import ScriptedProvider, answering
from tests.strategies import Branching, branchings, leaf_addresses, rewards_of

QUESTION = Question(question_id="q1", question="What is 2 + 3?", ground_truth="5")
PROMPTS = load_prompts("general")
PAPER = (3, 3, 3)
Rewards = dict[Address, float | None]


def spec_of(branching: Branching = PAPER, threshold: float = 0.5, mode: str = "adaptive") -> RunSpec:
    roles = {role.value: RoleSpec(samples=count) for role, count in zip(PLAYERS, branching, strict=True)}
    return RunSpec(
        name="grown",
        questions=QuestionSource(source="none"),
        roles=Roles.model_validate(roles),
        evaluator=EvaluatorSpec(kind=("number",)),
        credit=CreditSpec(threshold=threshold),
        growth=GrowthSpec.model_validate({"mode": mode}),
    )


def grown(rewards: Rewards, spec: RunSpec, order: Random | None = None) -> Tree:
    """Grow a tree with these rewards of leaves; answers arrive in a random order."""

    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        for _ in range(order.randrange(5) if order else 0):
            await asyncio.sleep(0)
        return [Completion(key, key, None, FinishReason.STOP, "m") for key in request.keys]

    async def reward(leaf: Node) -> float | None:
        await asyncio.sleep(0)
        return rewards[leaf.address]

    return asyncio.run(grow_adaptively(QUESTION, TreeInputs(spec, PROMPTS, complete), reward))


def all_leaves(reward: float | None, branching: Branching = PAPER) -> Rewards:
    return dict.fromkeys(leaf_addresses(branching), reward)


def leaves_of(tree: Tree) -> set[str]:
    return {str(leaf.address) for leaf in tree.leaves}


# which leaves are asked for


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_question_whose_answers_agree_takes_12_completions_of_39(reward: float) -> None:
    tree = grown(all_leaves(reward), spec_of())
    assert len(tree.nodes) == 12
    assert leaves_of(tree) == {f"{generation}.0.{sample}" for generation in range(3) for sample in range(2)}


def test_refinements_that_differ_get_all_their_siblings() -> None:
    rewards = all_leaves(1.0) | {Address((1, 0, 1)): 0.0}
    assert {"1.0.0", "1.0.1", "1.0.2"} <= leaves_of(grown(rewards, spec_of()))


def test_a_question_whose_answers_are_chance_grows_nearly_full() -> None:
    chance, sizes = Random(3), []
    for _ in range(30):
        rewards: Rewards = {leaf: float(chance.random() < 0.5) for leaf in leaf_addresses(PAPER)}
        sizes.append(len(grown(rewards, spec_of()).nodes))
    assert sum(sizes) / len(sizes) > 36


def test_leaves_of_unknown_worth_decide_nothing() -> None:
    assert len(grown(all_leaves(None), spec_of()).nodes) == 39


def test_a_failed_branch_is_recorded_and_grows_no_more() -> None:
    async def complete(request: CompletionRequest) -> Sequence[Completion]:
        if request.address == "1":
            raise RequestFailed("too long")
        return [Completion(key, key, None, FinishReason.STOP, "m") for key in request.keys]

    async def right(_leaf: Node) -> float:
        return 1.0

    tree = asyncio.run(grow_adaptively(QUESTION, TreeInputs(spec_of(), PROMPTS, complete), right))
    assert [(branch.address, branch.reason) for branch in tree.failures] == [("1", "too long")]
    assert leaves_of(tree) >= {"0.0.0", "2.0.0"}


# what decides


@given(data=st.data(), branching=branchings())
@settings(max_examples=60, deadline=None)
def test_the_tree_does_not_depend_on_the_order_of_arrival_and_a_replay_gives_the_same(
    data: st.DataObject, branching: Branching
) -> None:
    rewards = data.draw(rewards_of(branching))
    spec = spec_of(branching, data.draw(st.sampled_from([0.0, 0.5, 0.7])))
    first, second = (grown(rewards, spec, Random(seed)) for seed in (1, 2))
    assert first.nodes.keys() == second.nodes.keys()
    assert first.nodes.keys() == nodes_grown(Rule.of(spec), rewards)
    seen = {leaf.address: rewards[leaf.address] for leaf in first.leaves}
    assert nodes_grown(Rule.of(spec), seen) == first.nodes.keys()


@given(right=st.integers(0, 9), wrong=st.integers(0, 9), leaves=st.integers(0, 9))
def test_the_probabilities_of_all_outcomes_add_up(right: int, wrong: int, leaves: int) -> None:
    belief = Belief(0.5 + right, 0.5 + wrong)
    chances = [at_least(count, leaves, belief) for count in range(leaves + 2)]
    assert chances[0] == pytest.approx(1)
    assert chances[-1] == 0
    assert chances == sorted(chances, reverse=True)


def test_the_beta_binomial_is_the_textbook_s() -> None:
    assert at_least(2, 2, Belief(2, 1)) == pytest.approx(2 / 3 * 3 / 4)
    assert at_least(1, 2, Belief(1, 1)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("accuracy", [0.2, 0.5, 0.85])
def test_labels_are_the_full_tree_s_with_the_stated_confidence(accuracy: float) -> None:
    """Questions' rates are drawn from Beta(2a, 2(1-a)); both trees are made of the same leaves."""
    chance, agreed, labels = Random(7), 0, 0
    for _ in range(200):
        rate = chance.betavariate(2 * accuracy, 2 * (1 - accuracy))
        rewards: Rewards = {leaf: float(chance.random() < rate) for leaf in leaf_addresses(PAPER)}
        tree = grown(rewards, spec_of())
        full = propagate(rewards)
        seen = propagate({leaf.address: rewards[leaf.address] for leaf in tree.leaves})
        agreed += sum(seen[node].label(0.5) == full[node].label(0.5) for node in seen)
        labels += len(seen)
    assert agreed / labels >= spec_of().growth.confidence


def pairs_of(rewards: Mapping[Address, float | None]) -> int:
    """Count the pairs of critiques and of refinements: right siblings times wrong ones, below each parent."""
    siblings: dict[Address, list[bool]] = {}
    for address, value in propagate(rewards).items():
        if len(address) > 1:
            siblings.setdefault(address.parent, []).append(value.label(0.5))
    return sum(sum(labels) * (len(labels) - sum(labels)) for labels in siblings.values())


def test_at_an_accuracy_of_85_percent_a_completion_gives_half_as_many_pairs_again() -> None:
    """Questions' rates are drawn from Beta(0.85, 0.15); real ones vary at least as much (benchmarks/difficulty.py).

    If all questions were alike, no growth could predict where pairs are.
    """
    chance, pairs, completions = Random(11), {"full": 0, "adaptive": 0}, {"full": 0, "adaptive": 0}
    for _ in range(300):
        rate = chance.betavariate(0.85, 0.15)
        rewards: Rewards = {leaf: float(chance.random() < rate) for leaf in leaf_addresses(PAPER)}
        tree = grown(rewards, spec_of())
        seen = {leaf.address: rewards[leaf.address] for leaf in tree.leaves}
        for mode, leaves, nodes in (("full", rewards, 39), ("adaptive", seen, len(tree.nodes))):
            pairs[mode] += pairs_of(leaves)
            completions[mode] += nodes
    per_completion = {mode: pairs[mode] / completions[mode] for mode in pairs}
    assert per_completion["adaptive"] >= 1.5 * per_completion["full"]
    assert pairs["adaptive"] >= 0.75 * pairs["full"]


# with a store, from question to values


@pytest.fixture
def served(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> ScriptedProvider:
    monkeypatch.setenv("TEST_KEY", "k")
    provider.script = answering({}, right=0.85)
    return provider


def asking(provider: ScriptedProvider, mode: str) -> RunSpec:
    model = {"api_base": provider.url, "api_key_env": "TEST_KEY", "seed": 7}
    roles = {role.value: RoleSpec.model_validate({"model": f"openai/{role}", **model}) for role in PLAYERS}
    return spec_of(mode=mode).model_copy(update={"roles": Roles.model_validate(roles)})


def assessed(spec: RunSpec) -> ValuedTree:
    session = open_session(Settings(), Limits())
    return session.run(assess(QUESTION, TreeInputs(spec, PROMPTS, make_completer(session, [QUESTION.question_id]))))


def recalled(spec: RunSpec) -> ValuedTree:
    with Store(Settings().store) as store:
        return asyncio.run(
            assess(QUESTION, TreeInputs(spec, PROMPTS, StoreCompleter(store.rows([QUESTION.question_id]))))
        )


def test_the_store_alone_gives_the_same_tree(settings: Settings, served: ScriptedProvider) -> None:
    first, asked = assessed(asking(served, "adaptive")), served.request_count
    again = recalled(asking(served, "adaptive"))
    assert first.tree.complete
    assert again.values == first.values
    assert {node.completion.key for node in again.tree.nodes.values()} == {
        node.completion.key for node in first.tree.nodes.values()
    }
    assert served.request_count == asked


def test_going_on_to_the_full_tree_pays_only_the_difference(settings: Settings, served: ScriptedProvider) -> None:
    adaptive = assessed(asking(served, "adaptive")).tree
    full = assessed(asking(served, "full")).tree
    assert len(adaptive.nodes) < len(full.nodes) == served.completions_sent == 39
    assert all(full.nodes[address].completion.key == node.completion.key for address, node in adaptive.nodes.items())
    assert recalled(asking(served, "adaptive")).tree.nodes.keys() == adaptive.nodes.keys(), (
        "more in the store is no matter"
    )


def test_a_sample_that_is_asked_for_again_with_siblings_is_counted_once(
    settings: Settings, served: ScriptedProvider
) -> None:
    session = open_session(Settings(), Limits())
    for bought, stored in ((True, False), (False, True)):
        ask = make_completer(session, [QUESTION.question_id])
        tree = session.run(assess(QUESTION, TreeInputs(asking(served, "adaptive"), PROMPTS, ask))).tree
        total = ask.tally.total
        assert (total.completions, total.cached_completions) == (bought * len(tree.nodes), stored * len(tree.nodes))
