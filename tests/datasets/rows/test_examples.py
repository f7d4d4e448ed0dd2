"""From valued trees to rows."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import cast

import pytest
from hypothesis import given

from malt.config.roles import PLAYERS, Role
from malt.datasets.rows.examples import (
    find_candidates,
    label_nodes,
    pair_siblings,
    parse_row_id,
    scored_examples,
    trajectory_rows,
    write_rows,
)
from malt.datasets.rows.tables import DpoRow, Kind, KtoRow, SftRow
from malt.datasets.stats.diagnostics import DiagnosticsCount
from malt.grading.grades import Outcome
from malt.llm.request import FinishReason
from malt.trees.credit import OwnAnswer, ValuedTree, order_probability, role_nodes, wilson
from malt.trees.tree import Address, NodeStatus
from tests.published import spec_of
from tests.strategies import saying, tree_of, valued, valued_trees

MOST_PAIRS = {Role.GENERATOR: 2, Role.VERIFIER: 6, Role.REFINER: 18}
MOST_SUPERVISED = {Role.GENERATOR: 3, Role.VERIFIER: 9, Role.REFINER: 27}


def rows_of(kind: Kind, tree: ValuedTree, role: Role) -> Iterator[SftRow | DpoRow | KtoRow]:
    return write_rows(kind, tree, role, find_candidates(kind, label_nodes(tree, role)))


def sft_rows(tree: ValuedTree, role: Role) -> list[SftRow]:
    return cast(list[SftRow], list(rows_of("sft", tree, role)))


def kto_rows(tree: ValuedTree, role: Role) -> list[KtoRow]:
    return cast(list[KtoRow], list(rows_of("kto", tree, role)))


def dpo_rows(tree: ValuedTree, role: Role) -> list[DpoRow]:
    return cast(list[DpoRow], list(rows_of("dpo", tree, role)))


def as_address(node_id: str) -> Address:
    return Address(map(int, node_id.split(".")))


@given(valued_trees())
def test_supervised_candidates_are_the_texts_labelled_right(tree: ValuedTree) -> None:
    for role in PLAYERS:
        right = [node for node in role_nodes(tree, role) if tree.label(node.address)]
        rows = sft_rows(tree, role)
        assert [row["node_id"] for row in rows] == [str(node.address) for node in right]
        assert [row["completion"] for row in rows] == [[{"role": "assistant", "content": node.text}] for node in right]


@given(valued_trees())
def test_every_pair_has_one_parent_and_opposite_labels(tree: ValuedTree) -> None:
    for row in chain.from_iterable(dpo_rows(tree, role) for role in PLAYERS):
        chosen, rejected = as_address(row["chosen_node_id"]), as_address(row["rejected_node_id"])
        assert chosen.parent == rejected.parent
        assert (tree.label(chosen), tree.label(rejected)) == (True, False)
        assert row["margin"] == row["chosen_value"] - row["rejected_value"] > 0


@given(valued_trees())
def test_pairs_are_the_full_cross_product_under_each_parent(tree: ValuedTree) -> None:
    for role in PLAYERS:
        parents = {node.address.parent for node in role_nodes(tree, role)}
        expected = 0
        for parent in parents:
            labels = [tree.label(node.address) for node in tree.siblings(parent)]
            expected += labels.count(True) * labels.count(False)
        assert len(dpo_rows(tree, role)) == expected


@given(valued_trees())
def test_every_labelled_text_is_an_unpaired_candidate(tree: ValuedTree) -> None:
    for role in PLAYERS:
        labels = {row["node_id"]: row["label"] for row in kto_rows(tree, role)}
        nodes = [node.address for node in role_nodes(tree, role)]
        assert labels == {str(node): tree.label(node) for node in nodes if tree.label(node) is not None}


@given(valued_trees())
def test_candidates_know_whether_their_text_is_whole(tree: ValuedTree) -> None:
    for one in chain.from_iterable(label_nodes(tree, role) for role in PLAYERS):
        assert one.is_whole == (one.node.status is NodeStatus.OK)


@given(valued_trees())
def test_the_order_of_leaves_is_sure_and_that_of_nodes_above_is_as_sure_as_their_leaves_make_it(
    tree: ValuedTree,
) -> None:
    assert all(row["confidence"] == 1 for row in dpo_rows(tree, Role.REFINER))
    for pair in chain(
        pair_siblings(label_nodes(tree, Role.VERIFIER)), pair_siblings(label_nodes(tree, Role.GENERATOR))
    ):
        better, worse = pair.chosen.value, pair.rejected.value
        expected = order_probability(better.mean, better.known_leaves, worse.mean, worse.known_leaves)
        assert pair.confidence == pytest.approx(expected, abs=1e-4)


@given(valued_trees())
def test_an_inner_value_lies_in_its_interval_and_a_leaf_s_is_its_own(tree: ValuedTree) -> None:
    for row in trajectory_rows(tree):
        value, low, high = row["value"], row["value_low"], row["value_high"]
        if value is None or low is None or high is None:
            assert value is low is high is None
        elif row["role"] == "refiner":
            assert low == value == high
        else:
            assert 0 <= low <= value <= high <= 1
            assert (low, high) == pytest.approx(wilson(value, row["known_leaves"]))


def test_a_question_gives_at_most_3_9_and_27_supervised_rows() -> None:
    tree = valued(tree_of("q1"), [1] * 27)
    assert {role: len(sft_rows(tree, role)) for role in PLAYERS} == MOST_SUPERVISED


@pytest.mark.parametrize("role", PLAYERS)
def test_a_question_gives_at_most_2_6_and_18_pairs(role: Role) -> None:
    """A parent's three children give at most two pairs: with one or two of them right."""
    width = {Role.GENERATOR: 9, Role.VERIFIER: 3, Role.REFINER: 1}[role]
    rewards = [1 if leaf // width % 3 == 0 else 0 for leaf in range(27)]
    assert len(dpo_rows(valued(tree_of("q1"), rewards), role)) == MOST_PAIRS[role]


@given(valued_trees())
def test_no_question_exceeds_the_formulas(tree: ValuedTree) -> None:
    for role in PLAYERS:
        assert len(dpo_rows(tree, role)) <= MOST_PAIRS[role]
        assert len(sft_rows(tree, role)) <= MOST_SUPERVISED[role]


def test_children_all_alike_give_no_pair() -> None:
    assert not dpo_rows(valued(tree_of("q1"), [0] * 27), Role.REFINER)


def test_a_right_leaf_below_a_wrong_critique_is_still_an_example() -> None:
    tree = valued(tree_of("q1", (1, 1, 3)), [1, 0, 0])
    assert tree.label(Address((0, 0))) is False
    assert [row["node_id"] for row in sft_rows(tree, Role.REFINER)] == ["0.0.0"]


def test_a_prompt_is_the_messages_that_the_role_saw() -> None:
    row = sft_rows(valued(tree_of("q1"), [1] * 27), Role.VERIFIER)[0]
    assert row["prompt"] == [
        {"role": "system", "content": "You are the verifier."},
        {"role": "user", "content": "q1 below 0"},
    ]


@given(valued_trees(question_id="a/b-1"))
def test_row_ids_are_unique_and_lead_back_to_their_nodes(tree: ValuedTree) -> None:
    singles = [row for role in PLAYERS for row in chain(sft_rows(tree, role), kto_rows(tree, role))]
    pair_siblings = [row for role in PLAYERS for row in dpo_rows(tree, role)]
    ids = [row["row_id"] for row in singles] + [row["row_id"] for row in pair_siblings]
    assert len(ids) == len(set(ids))
    for row in singles:
        assert parse_row_id(row["row_id"])[1:] == ("a/b-1", (row["node_id"],))
    for pair in pair_siblings:
        assert parse_row_id(pair["row_id"])[1:] == ("a/b-1", (pair["chosen_node_id"], pair["rejected_node_id"]))


@pytest.mark.parametrize("text", ["", "sft-verifier", "sft-verifier/q1", "q1/2.0"])
def test_an_invalid_row_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a row id"):
        parse_row_id(text)


def test_a_role_s_scored_example_has_the_given_schema_and_what_it_answered_to() -> None:
    tree = valued(tree_of("q1", (1, 1, 2)), [1.0, 0.5])
    generated, checked, refined = (next(scored_examples(tree, role)) for role in PLAYERS)
    assert generated == {
        "question": "What is q1?",
        "solution": "generator 0 on q1",
        "score": 0.75,
        "evaluation": {
            "correctness_score": 0.75,
            "reasoning_score": 0.75,
            "explanation": ["worth 1", "worth 0.5"],
            "key_matches": ["4"],
        },
    }
    assert checked == {**generated, "solution": "verifier 0.0 on q1", "generated_solution": "generator 0 on q1"}
    assert refined["solution"] == "refiner 0.0.0 on q1"
    assert refined["generated_solution"] == "generator 0 on q1"
    assert refined["verification"] == "verifier 0.0 on q1"


def test_a_scored_example_is_written_for_every_valued_node_and_no_other() -> None:
    tree = valued(tree_of("q1", (2, 1, 1), {Address((0,)): FinishReason.LENGTH}), [1, None])
    assert [example["solution"] for role in PLAYERS for example in scored_examples(tree, role)] == [
        "generator 0 on q1",
        "verifier 0.0 on q1",
        "refiner 0.0.0 on q1",
    ]


def test_a_trajectory_row_says_what_was_read_and_what_it_is_worth() -> None:
    rows = {row["node_id"]: row for row in trajectory_rows(valued(tree_of("q1", (1, 1, 2)), [1.0, None]))}
    leaf, unknown, inner = rows["0.0.0"], rows["0.0.1"], rows["0"]
    assert (leaf["reward"], leaf["value"], leaf["label"], leaf["outcome"], leaf["answer"]) == (1, 1, True, "right", "4")
    assert (unknown["reward"], unknown["value"], unknown["label"], unknown["outcome"]) == (None, None, None, "unknown")
    assert unknown["error"] == "the judge's reply could not be read"
    assert (inner["reward"], inner["value"], inner["known_leaves"], inner["outcome"]) == (None, 1, 1, None)


def test_a_trajectory_row_has_the_diagnosis_apart_from_the_grade() -> None:
    tree = valued(tree_of("q1", (1, 1, 1)), [1.0])
    own = {Address((0,)): OwnAnswer(Outcome.WRONG, "7"), Address((0, 0, 0)): OwnAnswer(Outcome.RIGHT, "4.0")}
    rows = {row["node_id"]: row for row in trajectory_rows(replace(tree, diagnosis=own))}
    told = {node_id: (row["own_outcome"], row["own_answer"], row["answer"]) for node_id, row in rows.items()}
    assert told == {"0": ("wrong", "7", "7"), "0.0": (None, None, None), "0.0.0": ("right", "4.0", "4")}
    assert rows["0"]["outcome"] is None


@pytest.mark.parametrize("ending", ["<|im_end|>", "</s>", "\n<|eot_id|>\n"])
def test_stop_tokens_at_a_text_s_end_are_in_no_row_and_are_counted(ending: str) -> None:
    tree = valued(saying(tree_of("q1", (1, 1, 3)), {"0": f"It is 4.{ending}", "0.0.0": f"So 4.{ending}"}), [1, 1, 0])
    [generation] = sft_rows(tree, Role.GENERATOR)
    assert generation["completion"][0]["content"] == "It is 4."
    assert dpo_rows(tree, Role.REFINER)[0]["chosen"][0]["content"] == "So 4."
    assert kto_rows(tree, Role.REFINER)[0]["completion"][0]["content"] == "So 4."
    assert next(scored_examples(tree, Role.REFINER))["solution"] == "So 4."
    assert next(trajectory_rows(tree))["text"] == f"It is 4.{ending}"  # trajectories keep the original text
    [nothing] = label_nodes(valued(saying(tree.tree, {"0": ending}), [1, 1, 0]), Role.GENERATOR)
    assert not nothing.is_whole
    count = DiagnosticsCount(spec_of())
    count.add(tree)
    assert [texts.stop_tokens.count for role in PLAYERS for texts in count.result.texts[role].values()] == [1, 0, 1]


def test_a_stop_token_in_the_middle_of_a_text_stays() -> None:
    tree = valued(saying(tree_of("q1", (1, 1, 1)), {"0": "It is <|im_end|> 4."}), [1])
    assert sft_rows(tree, Role.GENERATOR)[0]["completion"][0]["content"] == "It is <|im_end|> 4."
