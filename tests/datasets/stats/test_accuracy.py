"""Accuracy of answers: counts, intervals over questions, and votes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.roles import PLAYERS
from malt.datasets.measures import Accuracy
from malt.datasets.stats.counts import TreeCount
from malt.datasets.stats.diagnostics import Ballot, DiagnosticsCount, Truth, TruthCount, any_right, bin_of, majority
from malt.trees.credit import ValuedTree, wilson
from tests.published import spec_of
from tests.strategies import diagnosed_trees, tree_of, valued

truths = st.lists(st.sampled_from([True, False, None]), max_size=5)


def counted(*questions: list[Truth]) -> Accuracy:
    count = TruthCount()
    for answers in questions:
        count.add(answers)
    return count.accuracy


def right(answer: str = "4") -> Ballot:
    return Ballot(answer, True)


def wrong(answer: str | None) -> Ballot:
    return Ballot(answer, False)


UNANSWERED = Ballot(None, False, is_cast=False)


def test_nothing_counted_has_no_percentage() -> None:
    assert counted() == Accuracy()
    assert counted([None, None]) == Accuracy(unknown=2)


def test_answers_to_one_question_that_are_all_alike_count_as_one() -> None:
    low, high = wilson(0.5, 1)
    assert counted([True] * 4, [False] * 4) == Accuracy(
        right=4, wrong=4, percent=50.0, low=round(100 * low, 2), high=round(100 * high, 2)
    )


def test_an_interval_is_that_of_single_answers_where_each_question_has_one() -> None:
    questions: list[list[Truth]] = [[place < 30] for place in range(100)]
    found = counted(*questions)
    low, high = wilson(0.3, 99)
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=0.01)


@given(st.lists(truths, max_size=6))
def test_an_interval_holds_its_percentage_and_is_no_narrower_than_for_independent_answers(
    questions: list[list[Truth]],
) -> None:
    found = counted(*questions)
    if found.percent is not None and found.low is not None and found.high is not None:
        low, high = wilson(found.percent / 100, found.right + found.wrong)
        assert 0 <= found.low <= found.percent <= found.high <= 100
        assert found.high - found.low >= 100 * (high - low) - 0.05


@given(st.lists(truths, max_size=6), st.randoms())
def test_the_order_of_questions_does_not_matter(questions: list[list[Truth]], random: object) -> None:
    assert counted(*questions) == counted(*reversed(questions))


VOTES = {
    "most give the right answer": ([right(), right(), wrong("5")], True),
    "most give one wrong answer": ([right(), wrong("5"), wrong("5")], False),
    "wrong answers that differ do not add up": ([right(), right(), wrong("5"), wrong("6"), wrong("7")], True),
    "case, space and markup make no other answer": ([right(), wrong("Rome"), wrong("**rome** ")], False),
    "however a right answer is written, it is one": ([right("4"), right("four"), wrong("5"), wrong("5")], True),
    "a tie goes to the first": ([wrong("5"), right()], False),
    "a tie goes to the first, the right one": ([right(), wrong("5")], True),
    "who gives no answer has no vote": ([right(), UNANSWERED, UNANSWERED], True),
    "where nobody answers, nothing is right": ([UNANSWERED, UNANSWERED], False),
    "wrong ones whose answer was not read are one": ([right(), wrong(None), wrong(None)], False),
    "what nobody could grade may win, and is not known": ([right(), Ballot("6", None), Ballot("6", None)], None),
    "what was neither read nor graded has no vote": ([right(), Ballot(None, None), Ballot(None, None)], True),
    "nobody voted": ([], None),
}


@pytest.mark.parametrize(("ballots", "expected"), VOTES.values(), ids=VOTES)
def test_the_answer_that_most_give_is_right(ballots: list[Ballot], expected: Truth) -> None:
    assert majority(ballots) is expected


@given(st.lists(st.builds(Ballot, st.sampled_from("45 "), st.sampled_from([True, False, None]), st.booleans())))
def test_no_vote_is_right_unless_an_answer_is(ballots: list[Ballot]) -> None:
    assert majority(ballots) is not True or any_right(ballots) is True


@given(st.lists(diagnosed_trees(), max_size=3))
def test_values_by_tenths_are_all_labelled_nodes(trees: list[ValuedTree]) -> None:
    diagnostics, count = DiagnosticsCount(spec_of()), TreeCount()
    for tree in trees:
        diagnostics.add(tree)
        count.add(tree)
    for role in PLAYERS:
        found, labels = diagnostics.result.values[role], count.counts.labels[role]
        assert (sum(found.right), sum(found.wrong)) == (labels.right, labels.wrong)
        assert len(found.right) == len(found.wrong) == 10


@pytest.mark.parametrize(
    ("value", "tenth"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.7, 7), ((0.9 + 0.5 + 0.7) / 3, 7), (0.99, 9), (1.0, 9)]
)
def test_a_value_on_a_border_is_in_the_tenth_above_it(value: float, tenth: int) -> None:
    assert bin_of(value) == tenth


def test_the_paper_s_tree_by_hand() -> None:
    count = DiagnosticsCount(spec_of())
    count.add(valued(tree_of("q1"), [1, 1, 0] * 3 + [0, 0, 1] * 3 + [0] * 9))
    found = count.result
    assert (found.leaves.right, found.leaves.wrong) == (9, 18)
    assert (found.leaves_vote.right, found.any_leaf.right) == (0, 1)
    assert found.values["generator"].right == (0, 0, 0, 0, 0, 0, 1, 0, 0, 0)
    assert found.values["generator"].wrong == (1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
