"""The statistics, compared with figures from the literature and with simulated evaluations of known truth."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from numpy.random import Generator

from malt.evaluation.statistics import (
    Scores,
    bootstrap,
    estimate,
    holm,
    paired_difference,
    paired_test,
    questions_needed,
    smallest_difference,
)
from malt.evaluation.summary import Cell
from tests.evaluation import simulated

SIMULATED = 1_000


def test_an_accuracy_is_averaged_over_questions_with_their_standard_error() -> None:
    found = estimate(np.array([1.0, 1.0, 0.0, 0.5, np.nan]))
    assert (found.accuracy, found.questions) == (0.625, 4)
    assert found.stderr == pytest.approx(np.std([1, 1, 0, 0.5], ddof=1) / 2)


def test_answers_that_repeat_each_other_make_an_interval_no_narrower() -> None:
    votes = np.array([1.0, 0.0] * 50)
    once, thrice = estimate(votes), estimate(np.repeat(votes.reshape(-1, 1), 3, axis=1).mean(axis=1))
    assert once.model_dump() == pytest.approx(thrice.model_dump())


def test_the_interval_of_a_perfect_score_does_not_shrink_to_a_point() -> None:
    found = estimate(np.ones(100))
    assert found.low is not None
    assert 0.95 < found.low < 0.97
    assert found.high == 1.0


def test_an_empty_evaluation_has_no_estimate() -> None:
    assert estimate(np.array([np.nan])) == Cell(accuracy=None, stderr=None, low=None, high=None, questions=0)
    assert paired_difference(np.array([np.nan, 1.0]), np.array([1.0, np.nan])) is None


def test_mcnemar_s_exact_test_is_that_of_the_discordant_questions() -> None:
    """Agresti, Categorical Data Analysis (2002), 10.1: 86 against 150 discordant pairs; and a table worked by hand."""
    assert paired_test(np.array([1.0] * 1 + [-1.0] * 6 + [0.0] * 30)) == pytest.approx(2 * (1 + 7) / 2**7)
    assert paired_test(np.array([1.0] * 86 + [-1.0] * 150)) == pytest.approx(3.7e-5, rel=0.1)
    assert paired_test(np.zeros(9)) == 1.0


def test_holm_multiplies_the_smallest_p_most_and_never_falls() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}


def test_four_points_at_twenty_percent_discordance_need_about_980_questions() -> None:
    assert questions_needed(0.04, 0.2) == pytest.approx(980, abs=2)
    assert smallest_difference(979, 0.2) == pytest.approx(0.04, abs=1e-4)
    assert smallest_difference(400, 0.2) == pytest.approx(0.0625, abs=1e-3)
    assert smallest_difference(5, 0.2) is None


def test_a_power_of_80_percent_is_kept() -> None:
    random, difference = np.random.default_rng(3), smallest_difference(400, 0.2)
    assert difference is not None
    better, worse = (0.2 + difference) / 2, (0.2 - difference) / 2
    drawn = random.multinomial(400, [better, worse, 0.8], size=SIMULATED)
    found = [paired_test(np.repeat([1.0, -1.0], counts[:2])) < 0.05 for counts in drawn]
    assert 0.74 < np.mean(found) < 0.86  # the exact test keeps a little less than is planned for McNemar's


def test_the_bootstrap_draws_the_same_each_time_and_matches_the_normal_one() -> None:
    values = np.random.default_rng(5).choice([-1, -1 / 3, 0, 1 / 3, 1], size=500)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(500)
    assert bootstrap(values) == (low, high)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_a_difference_that_was_never_seen_is_not_excluded() -> None:
    low, high = bootstrap(np.zeros(100))
    assert (low, high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)


@pytest.mark.parametrize("mean", [0.3, 0.85])
def test_intervals_of_accuracies_cover_the_truth_as_often_as_they_say(mean: float) -> None:
    found = [estimate(first) for first, _ in simulated.evaluations(SIMULATED, mean, 0.0)]
    covered = [each.low <= mean <= each.high for each in found if each.low is not None and each.high is not None]
    assert len(covered) == SIMULATED
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_differences_cover_the_truth_as_often_as_they_say() -> None:
    truth = simulated.true_gain(0.5, 0.4)
    found = [bootstrap(second - first, draws=1_000) for first, second in simulated.evaluations(SIMULATED, 0.5, 0.4)]
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.97


def test_the_p_of_several_sizes_is_that_of_all_ways_to_flip_their_signs() -> None:
    differences = np.array([1.0, -1 / 3, 2 / 3, 2 / 3, 1 / 3, 1.0, -1 / 3, 0.0])
    flipped = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    exact = np.mean(np.array(flipped) >= differences.sum() - 1e-9)
    assert paired_test(differences, draws=100_000) == pytest.approx(exact, abs=0.005)
    assert paired_test(differences) == paired_test(-differences)


@pytest.mark.parametrize("draw", [simulated.votes, simulated.scores])
@pytest.mark.parametrize("questions", [20, 100, 400])
def test_equal_systems_are_told_apart_in_at_most_five_percent(
    questions: int, draw: Callable[[Generator, Scores], Scores]
) -> None:
    random, told = np.random.default_rng(11), 0
    for _ in range(SIMULATED):
        chance = simulated.chances(random, 0.5, questions)
        told += paired_test(draw(random, chance) - draw(random, chance), draws=1_000) < 0.05
    assert told <= 0.05 * SIMULATED


def test_few_questions_give_no_interval_too_narrow() -> None:
    truth = simulated.true_gain(0.5, 0.4)
    pairs = simulated.evaluations(SIMULATED, 0.5, 0.4, questions=20)
    found = [bootstrap(second - first, draws=1_000) for first, second in pairs]
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.93
