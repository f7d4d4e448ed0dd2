"""Export of trees as stepwise supervision."""

from collections import Counter
from typing import NamedTuple

from hypothesis import given

from malt.datasets.export.row_formats import StepwiseRow, stepwise_rows
from malt.datasets.rows.examples import question_row, trajectory_rows
from malt.llm.request import FinishReason
from malt.questions.screening import Exclusion
from malt.trees.credit import ValuedTree
from malt.trees.tree import Address
from tests.published import MIXED, mixed_tree
from tests.strategies import tree_of, valued, valued_trees


class Paths(NamedTuple):
    """A tree's rows, and the number of its paths that were left out, by reason."""

    rows: list[StepwiseRow]
    left_out: Counter[str]


def paths_of(tree: ValuedTree, excluded: Exclusion | None = None) -> Paths:
    left_out = Counter[str]()
    question = question_row(tree.tree, "train", excluded)
    return Paths(list(stepwise_rows(question, trajectory_rows(tree), left_out)), left_out)


def test_a_path_is_a_generation_a_critique_and_a_refinement_with_labels_and_values() -> None:
    first = paths_of(mixed_tree("q1")).rows[0]
    assert first == {
        "id": "q1/0.0.0",
        "question_id": "q1",
        "node_ids": ["0", "0.0", "0.0.0"],
        "prompt": "What is q1?",
        "completions": ["generator 0 on q1", "verifier 0.0 on q1", "refiner 0.0.0 on q1"],
        "labels": [True, True, True],
        "values": [5 / 9, 2 / 3, 1.0],
    }


def test_a_path_to_a_leaf_of_unknown_outcome_is_left_out() -> None:
    found = paths_of(mixed_tree("q1"))
    assert (len(found.rows), found.left_out) == (26, {"no_label": 1})
    assert {f"2.2.{leaf}" for leaf in range(3)} - {row["node_ids"][-1] for row in found.rows} == {"2.2.0"}


def test_a_text_that_is_cut_off_takes_all_paths_through_it_along() -> None:
    tree = valued(tree_of("q1", finish_reasons={Address((0, 1)): FinishReason.LENGTH}), MIXED)
    found = paths_of(tree)
    assert (len(found.rows), found.left_out) == (23, {"not_whole": 3, "no_label": 1})
    assert not any("0.1" in row["node_ids"] for row in found.rows)


def test_a_question_that_gives_no_training_rows_gives_no_paths() -> None:
    found = paths_of(mixed_tree("q1"), Exclusion("decontaminate", "test.jsonl:3"))
    assert (found.rows, found.left_out) == ([], {"decontaminate": 27})


def test_a_question_without_a_tree_has_no_paths() -> None:
    left_out = Counter[str]()
    assert list(stepwise_rows(question_row(mixed_tree("q1").tree, "train", None), [], left_out)) == []
    assert left_out == {}


@given(valued_trees())
def test_every_leaf_is_a_row_or_counted_and_every_step_is_what_its_node_says(tree: ValuedTree) -> None:
    found = paths_of(tree)
    nodes = {row["node_id"]: row for row in trajectory_rows(tree)}
    assert len(found.rows) + found.left_out.total() == len(list(tree.tree.leaves))
    for row in found.rows:
        steps = [nodes[node_id] for node_id in row["node_ids"]]
        assert row["completions"] == [step["text"] for step in steps]
        assert row["labels"] == [step["label"] for step in steps]
        assert row["values"] == [step["value"] for step in steps]
        assert [row["node_ids"][-1].rsplit(".", cut)[0] for cut in (2, 1, 0)] == row["node_ids"]
