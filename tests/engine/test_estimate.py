"""What further completions will take: a range that holds, by questions that were seen."""

from random import Random
from statistics import fmean

import pytest

from malt.engine.plan import Range, Total, each_takes, student_t


def test_the_range_holds_nineteen_times_of_twenty() -> None:
    """Questions differ by a factor; completions of one are alike. Ten are seen, a hundred come."""
    chance, held = Random(1), 0
    for _ in range(400):
        seen = [Total(9 * chance.lognormvariate(5, 0.5), 9) for _ in range(10)]
        came = fmean(chance.lognormvariate(5, 0.5) for _ in range(100))
        low, _, high = each_takes(seen, 100)
        held += low <= came <= high
    assert 0.90 <= held / 400 <= 0.99


def test_more_questions_make_it_narrower() -> None:
    chance = Random(2)
    totals = [Total(chance.gauss(100, 20), 1) for _ in range(200)]
    widths = [high - low for low, _, high in (each_takes(totals[:count], 1000) for count in (3, 10, 50, 200))]
    assert widths == sorted(widths, reverse=True)


def test_one_question_says_little() -> None:
    assert each_takes([Total(300, 3)], 50) == Range(50, 100, 200)


def test_questions_weigh_by_their_completions() -> None:
    assert each_takes([Total(300, 3), Total(10, 1)], 50).expected == 77.5


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.71), (18, 2.10), (19, 2.093), (30, 2.042), (120, 1.980)])
def test_the_quantiles_are_student_s(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=0.01)
