"""Credit as in the paper: values are means of leaves, labels compare them with a threshold; and their uncertainty."""

from itertools import product
from math import comb
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.spec import CreditSpec
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.trees.credit import Value, ValuedTree, order_probability, propagate, value_tree, wilson
from malt.trees.tree import Address
from tests.strategies import (
    Rewards,
    addresses,
    grade_of,
    leaf_addresses,
    leaf_rewards,
    tree_of,
    valued,
    valued_trees,
)

TRUNCATED = Grade(Outcome.TRUNCATED, None, "llm", Evaluation(0.0, 0.0))


@given(leaf_rewards())
def test_a_node_is_worth_the_mean_of_the_known_leaves_below_it(rewards: Rewards) -> None:
    values = propagate(rewards)
    for address in {Address(leaf[:depth]) for leaf in rewards for depth in (1, 2, 3)}:
        known = [reward for leaf, reward in rewards.items() if leaf[: len(address)] == address and reward is not None]
        assert (address in values) == bool(known)
        if known:
            assert values[address].mean == pytest.approx(fmean(known))
            assert values[address].known_leaves == len(known)


@given(leaf_rewards(known=True), st.randoms())
def test_values_do_not_depend_on_the_order_in_which_leaves_arrived(rewards: Rewards, random: Random) -> None:
    shuffled = list(rewards.items())
    random.shuffle(shuffled)
    assert propagate(dict(shuffled)) == propagate(rewards)


@given(valued_trees(), st.floats(0, 0.99), st.floats(0, 0.99))
def test_raising_the_threshold_never_makes_a_node_right(tree: ValuedTree, one: float, other: float) -> None:
    low, high = sorted((one, other))
    for value in tree.values.values():
        assert value.label(low) >= value.label(high)


def test_a_tie_is_wrong() -> None:
    assert not Value(0.5, 2).label(0.5)


def test_a_tie_that_floating_point_puts_just_above_the_threshold_is_wrong() -> None:
    scores = dict(zip(leaf_addresses((1, 1, 3)), (0.9, 0.5, 0.7), strict=True))
    value = propagate(scores)[Address((0,))]
    assert value.mean > 0.7
    assert not value.label(0.7)


def test_pooling_is_global_so_two_good_critiques_do_not_outweigh_six_wrong_leaves() -> None:
    tree = valued(tree_of("q1", (1, 3, 3)), [1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert tree.values[Address((0,))].mean == pytest.approx(4 / 9)
    assert tree.label(Address((0,))) is False
    assert tree.label(Address((0, 0))) is True


def test_a_node_without_a_known_leaf_has_no_label() -> None:
    tree = valued(tree_of("q1", (2, 1, 1)), [None, 1])
    assert tree.label(Address((0,))) is None
    assert tree.label(Address((1,))) is True


@pytest.mark.parametrize(("rule", "expected"), [("wrong", 0.5), ("unknown", 1.0)])
def test_a_truncated_leaf_counts_as_the_spec_says(rule: str, expected: float) -> None:
    tree = tree_of("q1", (1, 1, 2))
    first, second = leaf_addresses((1, 1, 2))
    credit = CreditSpec.model_validate({"truncated": rule})
    assert value_tree(tree, {first: TRUNCATED, second: grade_of(1)}, credit).values[Address((0,))].mean == expected


def test_siblings_share_a_parent_and_come_in_order() -> None:
    tree = valued(tree_of("q1"), [1] * 27)
    assert [str(node.address) for node in tree.siblings(Address((2, 0)))] == ["2.0.0", "2.0.1", "2.0.2"]
    assert [str(node.address) for node in tree.siblings(Address(()))] == ["0", "1", "2"]


def test_an_inner_node_s_evaluation_pools_its_known_leaves() -> None:
    tree = valued(tree_of("q1", (1, 1, 3)), [1.0, None, 0.5])
    pooled = tree.evaluation(Address((0,)))
    assert pooled == Evaluation(0.75, 0.75, ("worth 1", "worth 0.5"), ("4",), 0.75)


def test_a_leaf_left_out_of_the_value_is_left_out_of_the_evaluation_too() -> None:
    first, second = leaf_addresses((1, 1, 2))
    grades = {first: TRUNCATED, second: grade_of(1)}
    tree = value_tree(tree_of("q1", (1, 1, 2)), grades, CreditSpec(truncated="unknown"))
    assert tree.evaluation(Address((0, 0))) == grade_of(1).evaluation


def test_a_node_that_was_judged_itself_keeps_its_own_evaluation() -> None:
    generation, leaf = Address((0,)), Address((0, 0, 0))
    tree = value_tree(tree_of("q1", (1, 1, 1)), {generation: grade_of(0.25), leaf: grade_of(1)}, CreditSpec())
    assert tree.evaluation(generation) == grade_of(0.25).evaluation
    assert tree.values[generation].mean == 1


def test_a_node_whose_own_judging_failed_falls_back_on_its_leaves() -> None:
    generation, leaf = Address((0,)), Address((0, 0, 0))
    tree = value_tree(tree_of("q1", (1, 1, 1)), {generation: grade_of(None), leaf: grade_of(1)}, CreditSpec())
    assert tree.evaluation(generation) == grade_of(1).evaluation


def test_a_tree_of_the_paper_s_shape_has_39_nodes() -> None:
    assert len(addresses()) == 39


leaves = st.integers(1, 27)
means = st.floats(0, 1)


@given(means, leaves)
def test_an_interval_holds_its_value_and_stays_between_0_and_1(mean: float, count: int) -> None:
    low, high = wilson(mean, count)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1


@given(means, leaves)
def test_more_leaves_make_a_narrower_interval(mean: float, count: int) -> None:
    few, many = wilson(mean, count), wilson(mean, count + 5)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),  # Agresti and Coull 1998, the score interval at p = 0.5, n = 10
        (0.0, 10, 0.0, 0.2775),
        (1.0, 3, 0.4385, 1.0),
    ],
)
def test_known_intervals(mean: float, count: int, low: float, high: float) -> None:
    assert wilson(mean, count) == pytest.approx((low, high), abs=5e-5)


@given(means, leaves, means, leaves)
def test_one_order_or_the_other_is_right(a: float, m: int, b: float, n: int) -> None:
    assert order_probability(a, m, b, n) + order_probability(b, n, a, m) == pytest.approx(1, abs=1e-6)


@given(means, leaves)
def test_equal_nodes_are_a_toss_up(mean: float, count: int) -> None:
    assert order_probability(mean, count, mean, count) == pytest.approx(0.5, abs=1e-6)


def exact_probability(k: int, m: int, j: int, n: int) -> float:
    """P(p > q) for p ~ Beta(k+1, m-k+1), q ~ Beta(j+1, n-j+1): a count of the orders of m + n + 2 uniform draws."""
    total = comb(m + n + 2, m + 1)
    return sum(comb(k + i, k) * comb(m - k + n + 1 - i, m - k) for i in range(j + 1, n + 2)) / total


@pytest.mark.parametrize(("k", "j"), list(product(range(4), range(4))))
def test_the_probability_is_the_one_that_counting_gives(k: int, j: int) -> None:
    assert order_probability(k / 3, 3, j / 3, 3) == pytest.approx(exact_probability(k, 3, j, 3), abs=1e-4)
