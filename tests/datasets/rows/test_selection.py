"""Selection of the candidates that become rows; every dropped one is counted."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.roles import PLAYERS, Role
from malt.config.spec import CreditSpec, DatasetSpec
from malt.datasets.rows.examples import Candidate, find_candidates, label_nodes, pair_siblings
from malt.datasets.rows.selection import SelectionCount, select
from malt.trees.credit import ValuedTree
from tests.strategies import tree_of, valued, valued_trees

PAPER = DatasetSpec(same_answer=())
"""The paper's rules; a truncated text is never a target."""
SCORES = [0.9, 0.9, 0.9, 0.9, 0.9, 0.3, 0.1, 0.1, 0.1]
"""Rewards of the leaves below three critiques, whose values are 0.9, 0.7 and 0.1."""


@st.composite
def switched(draw: st.DrawFn) -> DatasetSpec:
    """Draw gates of any strictness."""
    return DatasetSpec(
        generator_dpo=draw(st.booleans()),
        min_margin=draw(st.floats(0, 1)),
        min_confidence=draw(st.floats(0, 1)),
        max_pairs_per_question=draw(st.none() | st.integers(1, 5)),
        balance=draw(st.sampled_from(["none", "labels"])),
    )


def scored(threshold: float = 0.5) -> ValuedTree:
    return valued(tree_of("q1", (1, 3, 3)), SCORES, CreditSpec(threshold=threshold))


def names(kept: Sequence[Candidate]) -> list[str]:
    """Name candidates by their nodes."""
    return [">".join(map(str, each.addresses)) for each in kept]


@given(valued_trees(), switched())
def test_candidates_are_what_was_kept_and_what_each_gate_dropped(tree: ValuedTree, spec: DatasetSpec) -> None:
    for role in PLAYERS:
        for sifted in select(tree, role, spec).values():
            assert sifted.candidates == len(sifted.kept) + sum(sifted.dropped.values())
            assert all(count >= 0 for count in sifted.dropped.values())


@given(valued_trees(), switched())
def test_kept_candidates_stay_in_their_order(tree: ValuedTree, spec: DatasetSpec) -> None:
    for role in PLAYERS:
        known, selected = label_nodes(tree, role), select(tree, role, spec)
        every = find_candidates("kto", known)
        assert list(selected["kto"].kept) == [one for one in every if one in selected["kto"].kept]
        assert list(selected["dpo"].kept) == [pair for pair in pair_siblings(known) if pair in selected["dpo"].kept]


@given(valued_trees())
def test_by_the_paper_only_texts_that_are_flawed_texts_and_the_generator_s_pairs_are_left_out(tree: ValuedTree) -> None:
    for role in PLAYERS:
        known, selected = label_nodes(tree, role), select(tree, role, PAPER)
        assert [one.chosen for one in selected["sft"].kept] == [one for one in known if one.is_right and one.is_whole]
        assert [one.chosen for one in selected["kto"].kept] == [one for one in known if one.is_whole]
        whole = [pair for pair in pair_siblings(known) if pair.chosen.is_whole and pair.rejected.is_whole]
        assert list(selected["dpo"].kept) == ([] if role is Role.GENERATOR else whole)


@given(valued_trees(), switched())
def test_kept_pairs_are_as_sure_and_as_far_apart_as_was_asked(tree: ValuedTree, spec: DatasetSpec) -> None:
    for role in PLAYERS:
        kept = select(tree, role, spec)["dpo"].kept
        assert all(pair.margin >= spec.min_margin - 1e-9 and pair.confidence >= spec.min_confidence for pair in kept)
        assert spec.max_pairs_per_question is None or len(kept) <= spec.max_pairs_per_question


@given(valued_trees())
def test_balanced_rows_are_as_many_right_as_wrong(tree: ValuedTree) -> None:
    for role in PLAYERS:
        selected = select(tree, role, DatasetSpec(balance="labels"))
        labels = [one.chosen.is_right for one in selected["kto"].kept]
        assert labels.count(True) == labels.count(False)
        plain = select(tree, role, PAPER)
        every = [one.chosen.is_right for one in plain["kto"].kept]
        assert labels.count(True) == min(every.count(True), every.count(False))
        assert selected["sft"] == plain["sft"]


def test_the_generator_s_pairs_are_counted_also_while_they_are_switched_off() -> None:
    tree = valued(tree_of("q1", (2, 1, 1)), [1, 0])
    off, on = (select(tree, Role.GENERATOR, DatasetSpec(generator_dpo=wanted))["dpo"] for wanted in (False, True))
    assert (len(off.kept), off.dropped["generator_dpo"]) == (0, 1)
    assert (len(on.kept), on.dropped["generator_dpo"]) == (1, 0)


@pytest.mark.parametrize(("least", "kept"), [(0.6, ["0.0>0.2", "0.1>0.2"]), (0.61, ["0.0>0.2"]), (0.81, [])])
def test_a_margin_equal_to_the_least_is_enough_whatever_floating_point_says(least: float, kept: list[str]) -> None:
    selected = select(scored(), Role.VERIFIER, DatasetSpec(min_margin=least))
    assert names(selected["dpo"].kept) == kept
    assert selected["dpo"].dropped["min_margin"] == 2 - len(kept)


def test_pairs_whose_order_is_too_unsure_are_left_out() -> None:
    sure, unsure = pair_siblings(label_nodes(scored(), Role.VERIFIER))
    assert sure.confidence > unsure.confidence > 0.5
    selected = select(scored(), Role.VERIFIER, DatasetSpec(min_confidence=sure.confidence))
    assert list(selected["dpo"].kept) == [sure]
    assert selected["dpo"].dropped["min_confidence"] == 1


def test_the_pairs_of_largest_margin_are_kept() -> None:
    selected = select(scored(), Role.VERIFIER, DatasetSpec(max_pairs_per_question=1))
    assert names(selected["dpo"].kept) == ["0.0>0.2"]
    assert selected["dpo"].dropped["max_pairs_per_question"] == 1


def test_the_surer_of_two_pairs_with_equal_margins_is_kept() -> None:
    """Each critique's leaves are all right or all wrong; the first pair's are one each, as two are unknown."""
    rewards = [1, None, None, 0, None, None, 1, 1, 1, 0, 0, 0]
    tree = valued(tree_of("q1", (2, 2, 3)), rewards)
    selected = select(tree, Role.VERIFIER, DatasetSpec(max_pairs_per_question=1))
    assert names(selected["dpo"].kept) == ["1.0>1.1"]


def test_among_equals_the_first_in_the_tree_are_kept() -> None:
    tree = valued(tree_of("q1", (1, 2, 3)), [0, 1, 0, 1, 0, 0])
    selected = select(tree, Role.REFINER, DatasetSpec(max_pairs_per_question=3))
    assert names(selected["dpo"].kept) == ["0.0.1>0.0.0", "0.0.1>0.0.2", "0.1.0>0.1.1"]


def test_balance_keeps_the_best_right_ones_and_the_worst_wrong_ones() -> None:
    tree = valued(tree_of("q1", (1, 2, 3)), [0.6, 0.9, 0.8, 0.2, 0.1, 0.7])
    kept = names(select(tree, Role.REFINER, DatasetSpec(balance="labels"))["kto"].kept)
    assert kept == ["0.0.1", "0.0.2", "0.1.0", "0.1.1"]


def test_a_question_with_one_label_gives_no_balanced_rows_and_says_so() -> None:
    tree = valued(tree_of("q1", (1, 1, 3)), [1, 1, 1])
    kto = select(tree, Role.REFINER, DatasetSpec(balance="labels"))["kto"]
    assert (list(kto.kept), kto.dropped["balance"]) == ([], 3)


@given(st.lists(valued_trees(), max_size=3), switched())
def test_counts_of_many_trees_add_up(trees: list[ValuedTree], spec: DatasetSpec) -> None:
    count, kept = SelectionCount(), dict.fromkeys(PLAYERS, 0)
    for tree in trees:
        for role in PLAYERS:
            selected = select(tree, role, spec)
            count.add(role, selected)
            kept[role] += len(selected["dpo"].kept)
    for role in PLAYERS:
        assert count.counts[role]["dpo"].kept == kept[role]
        for rows in count.counts[role].values():
            assert rows.candidates == rows.kept + sum(rows.dropped.values())
