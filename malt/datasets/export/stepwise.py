"""Trees as stepwise supervision: each path from a generation to a refinement is a row of three steps.

The rows are those of TRL's stepwise type (`prompt`, `completions`, `labels`) with each step's value beside its label.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypedDict, cast

from malt.config.spec import PLAYERS
from malt.datasets.rows.tables import QuestionRow, TrajectoryRow
from malt.trees.tree import NodeStatus

COLUMNS = ("question_id", "node_id", "text", "status", "value", "label")
"""What is read of a node."""


class StepwiseRow(TypedDict):
    """One path; its lists are parallel, and in the order of the roles. `malt explain VERSION ID` tells of its leaf."""

    id: str
    question_id: str
    node_ids: list[str]
    prompt: str
    completions: list[str]
    labels: list[bool]
    values: list[float]


class Paths(NamedTuple):
    """What a tree gives, and how many of its paths were left out, by why."""

    rows: list[StepwiseRow]
    left_out: Counter[str]


def stepwise_rows(question: QuestionRow, nodes: Iterable[TrajectoryRow]) -> Paths:
    """Write a tree's paths in its order, those whose three nodes are whole texts with a label."""
    rows, left_out = [], Counter[str]()
    for path in paths(nodes):
        fault = question["excluded"] or fault_of(path)
        if fault is None:
            rows.append(stepwise_row(question, path))
        else:
            left_out[fault] += 1
    return Paths(rows, left_out)


def paths(nodes: Iterable[TrajectoryRow]) -> Iterator[list[TrajectoryRow]]:
    """Yield the nodes from a generation to each leaf. The nodes come depth first."""
    path: list[TrajectoryRow] = []
    for node in nodes:
        depth = node["node_id"].count(".")
        path = [*path[:depth], node]
        if len(path) == len(PLAYERS):
            yield path


def fault_of(path: list[TrajectoryRow]) -> str | None:
    """Why a path is no row: a text that is not whole would be judged for its end; None where it is one."""
    if any(node["status"] != NodeStatus.OK for node in path):
        return "not_whole"
    if any(node["label"] is None for node in path):
        return "no_label"
    return None


def stepwise_row(question: QuestionRow, path: list[TrajectoryRow]) -> StepwiseRow:
    """Write one path, whose steps all have a label, and with it a value."""
    return StepwiseRow(
        id=f"{question['question_id']}/{path[-1]['node_id']}",
        question_id=question["question_id"],
        node_ids=[node["node_id"] for node in path],
        prompt=question["question"],
        completions=[node["text"] for node in path],
        labels=[cast(bool, node["label"]) for node in path],
        values=[cast(float, node["value"]) for node in path],
    )
