"""Back from rows to trees: what a version's trajectories say, as the types that they came from."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from malt.config.roles import PLAYERS
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.datasets.rows.tables import MessageRow, QuestionRow, TrajectoryRow
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import Completion, Message
from malt.questions.question import Question
from malt.questions.screening import Exclusion
from malt.trees.credit import Length, OwnAnswer, ValuedTree, value_tree
from malt.trees.tree import Address, Node, Tree

_Prompts = Mapping[str, list[MessageRow]]
"""What siblings saw, by the id of their parent."""

_ALWAYS_THERE: tuple[Literal["text", "model", "finish_reason", "request_key", "latency_s", "run"], ...] = (
    "text",
    "model",
    "finish_reason",
    "request_key",
    "latency_s",
    "run",
)


def restore_tree(question: QuestionRow, rows: Iterable[TrajectoryRow], prompts: _Prompts, spec: RunSpec) -> ValuedTree:
    """Rebuild one complete tree; values and labels are worked out again from the leaves' rewards, not read."""
    nodes, grades, diagnosis, lengths = {}, {}, {}, {}
    for row in rows:
        address = _parse_node_id(row["node_id"])
        nodes[address] = _restore_node(address, row, prompts.get(row["node_id"].rpartition(".")[0], []))
        lengths[address] = Length(row["prompt_length"], row["text_length"])
        if row["outcome"] is not None or address.is_leaf:
            grades[address] = _restore_grade(row, spec.evaluator)
        if row["own_outcome"] is not None:
            diagnosis[address] = OwnAnswer(Outcome(row["own_outcome"]), row["own_answer"])
    valued = value_tree(Tree(restore_question(question), nodes), grades, spec.credit)
    return replace(valued, diagnosis=diagnosis, lengths=lengths)


def _restore_node(address: Address, row: TrajectoryRow, prompt: list[MessageRow]) -> Node:
    """Rebuild one node; raises `ValueError` where something is empty that every node has."""
    empty = [name for name in _ALWAYS_THERE if row[name] is None]
    if empty:
        raise ValueError(f"node {address} has no {', '.join(empty)}")
    completion = Completion(
        key=row["request_key"],
        text=row["text"],
        reasoning=row["reasoning"],
        finish_reason=row["finish_reason"],
        model=row["model"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        cost_usd=row["cost_usd"],
        latency_s=row["latency_s"],
        run=row["run"],
    )
    return Node(address, tuple(Message(turn["role"], turn["content"]) for turn in prompt), completion)


def _restore_grade(row: TrajectoryRow, evaluator: EvaluatorSpec) -> Grade:
    """Rebuild a judged node's grade; its score is the reward, or without one the weighted mean of the two scores."""
    correctness, reasoning = row["correctness_score"], row["reasoning_score"]
    evaluation = None
    if correctness is not None and reasoning is not None:
        weights = evaluator.correctness_weight, evaluator.reasoning_weight
        weighted = (correctness * weights[0] + reasoning * weights[1]) / sum(weights)
        evaluation = Evaluation(
            correctness_score=correctness,
            reasoning_score=reasoning,
            explanation=tuple(row["explanation"] or ()),
            key_matches=tuple(row["key_matches"] or ()),
            score=weighted if row["reward"] is None else row["reward"],
        )
    outcome = Outcome(row["outcome"] or Outcome.UNKNOWN)
    return Grade(outcome, row["answer"], row["grader"] or "", evaluation, row["error"])


def restore_question(row: QuestionRow) -> Question:
    return Question(
        question_id=row["question_id"],
        question=row["question"],
        ground_truth=row["ground_truth"],
        reference=row["reference"],
        choices=tuple(row["choices"]),
        metadata=json.loads(row["metadata"]),
    )


def exclusion_of(row: QuestionRow) -> Exclusion | None:
    """Read why a question gives no rows."""
    return None if row["excluded"] is None else Exclusion(row["excluded"], row["excluded_by"] or "")


def _parse_node_id(node_id: str) -> Address:
    """Read a node's id; raises `ValueError` where it is none."""
    address = Address(int(sample) for sample in node_id.split("."))
    if len(address) > len(PLAYERS):
        raise ValueError(f"{node_id!r} is deeper than a refinement")
    return address
