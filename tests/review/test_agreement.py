"""Agreement of two graders."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.grading.grades import Outcome
from malt.review.grader_options import VerdictPairs, measure_agreement

VERDICT_PAIRS = st.tuples(st.sampled_from([True, False, None]), st.sampled_from([True, False, None]))


def counts() -> st.SearchStrategy[VerdictPairs]:
    return st.lists(VERDICT_PAIRS).map(Counter)


def test_kappa_is_that_of_the_textbook_example() -> None:
    found = measure_agreement(Counter({(True, True): 20, (True, False): 5, (False, True): 10, (False, False): 15}))
    assert (found.compared, found.agreement) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)


def test_only_answers_that_both_know_are_compared() -> None:
    found = measure_agreement(
        Counter({(True, True): 1, (False, False): 1, (None, True): 3, (False, None): 2, (None, None): 4})
    )
    assert (found.compared, found.unknown, found.agreement, found.kappa) == (2, 9, 1.0, 1.0)


def test_kappa_says_nothing_where_all_verdicts_are_one() -> None:
    assert tuple(dict(measure_agreement(Counter({(True, True): 7}))).values()) == (7, 0, 1.0, None)


def test_nothing_compared_is_no_agreement() -> None:
    assert tuple(dict(measure_agreement(Counter())).values()) == (0, 0, None, None)


@given(counts())
def test_it_does_not_matter_which_grader_comes_first(verdicts: VerdictPairs) -> None:
    swapped = Counter({(second, first): count for (first, second), count in verdicts.items()})
    assert measure_agreement(swapped) == measure_agreement(verdicts)


@given(counts())
def test_kappa_is_the_agreement_beyond_chance(verdicts: VerdictPairs) -> None:
    found = measure_agreement(verdicts)
    known = {pair: count for pair, count in verdicts.items() if None not in pair}
    if found.kappa is not None:
        total = sum(known.values())
        first, second = (Fraction(sum(c for pair, c in known.items() if pair[side]), total) for side in (0, 1))
        chance = first * second + (1 - first) * (1 - second)
        same = Fraction(sum(count for pair, count in known.items() if pair[0] is pair[1]), total)
        assert found.kappa == pytest.approx(float((same - chance) / (1 - chance)))


def test_an_answer_that_is_not_there_is_wrong_and_one_cut_off_is_not_compared() -> None:
    assert [outcome.truth for outcome in Outcome] == [True, False, False, None, None]
