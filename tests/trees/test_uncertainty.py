"""How sure a value and an order are."""

from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.trees.credit import order_probability, wilson

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


def exactly(k: int, m: int, j: int, n: int) -> float:
    """P(p > q) for p ~ Beta(k+1, m-k+1), q ~ Beta(j+1, n-j+1): a count of the orders of m + n + 2 uniform draws."""
    total = comb(m + n + 2, m + 1)
    return sum(comb(k + i, k) * comb(m - k + n + 1 - i, m - k) for i in range(j + 1, n + 2)) / total


@pytest.mark.parametrize(("k", "j"), list(product(range(4), range(4))))
def test_the_probability_is_the_one_that_counting_gives(k: int, j: int) -> None:
    assert order_probability(k / 3, 3, j / 3, 3) == pytest.approx(exactly(k, 3, j, 3), abs=1e-4)
