"""From a valued tree to rows: supervised examples, preference pairs and unpaired labels per role, and the tree itself.

Pure functions; what the rows look like in a file is said in `tables`. The rules are MALT's (arXiv 2412.01928, section
4.3 and algorithm 1): every node labelled right is a supervised example of its role, whatever its parent's label; every
right sibling is preferred to every wrong one under the same parent.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypedDict

from malt.fingerprint import canonical_json
from malt.llm.completion import Message
from malt.questions import Question
from malt.spec import Role
from malt.trees.credit import ValuedTree, role_nodes
from malt.trees.tree import Address, Node, NodeStatus, Tree


class MessageRow(TypedDict):
    """One turn, as chat templates want it."""

    role: str
    content: str


class SftRow(TypedDict):
    """TRL's conversational prompt-completion."""

    prompt: list[MessageRow]
    completion: list[MessageRow]
    row_id: str
    question_id: str
    node_id: str
    value: float


class DpoRow(TypedDict):
    """TRL's conversational preference."""

    prompt: list[MessageRow]
    chosen: list[MessageRow]
    rejected: list[MessageRow]
    row_id: str
    question_id: str
    chosen_node_id: str
    rejected_node_id: str
    chosen_value: float
    rejected_value: float
    margin: float


class KtoRow(TypedDict):
    """TRL's conversational unpaired preference."""

    prompt: list[MessageRow]
    completion: list[MessageRow]
    label: bool
    row_id: str
    question_id: str
    node_id: str
    value: float


class TrajectoryRow(TypedDict):
    """One node. The grade's columns are empty where the node itself was not judged."""

    question_id: str
    node_id: str
    role: str
    model: str
    text: str
    reasoning: str | None
    answer: str | None
    finish_reason: str
    status: str
    reward: float | None
    value: float | None
    label: bool | None
    known_leaves: int
    outcome: str | None
    grader: str | None
    correctness_score: float | None
    reasoning_score: float | None
    explanation: list[str] | None
    key_matches: list[str] | None
    error: str | None
    request_key: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    latency_s: float


class QuestionRow(TypedDict):
    """One question, also where its tree is incomplete."""

    question_id: str
    question: str
    ground_truth: str
    choices: list[str]
    complete: bool
    metadata: str


class EvaluationRow(TypedDict):
    """The evaluation of one example in a `*_training.json`."""

    correctness_score: float
    reasoning_score: float
    explanation: list[str]
    key_matches: list[str]


class ScoredExample(TypedDict):
    """One example of `generator_training.json`."""

    question: str
    solution: str
    score: float
    evaluation: EvaluationRow


class VerifierExample(ScoredExample):
    """One example of `verifier_training.json`: `solution` is the critique, of `generated_solution`."""

    generated_solution: str


class RefinerExample(VerifierExample):
    """One example of `refiner_training.json`: `solution` is the refinement, after `verification`."""

    verification: str


class Labelled(NamedTuple):
    """A whole text with its value and label: what rows are made from."""

    node: Node
    value: float
    right: bool


def sft_rows(valued: ValuedTree, role: Role) -> Iterator[SftRow]:
    """One row for each of the role's nodes labelled right."""
    for node, value, right in labelled(valued, role_nodes(valued, role)):
        if right:
            yield SftRow(
                prompt=turns(node.prompt),
                completion=reply(node),
                row_id=row_id(f"sft-{role}", valued, node),
                question_id=valued.tree.question.question_id,
                node_id=str(node.address),
                value=value,
            )


def kto_rows(valued: ValuedTree, role: Role) -> Iterator[KtoRow]:
    """One row for each of the role's labelled nodes."""
    for node, value, right in labelled(valued, role_nodes(valued, role)):
        yield KtoRow(
            prompt=turns(node.prompt),
            completion=reply(node),
            label=right,
            row_id=row_id(f"kto-{role}", valued, node),
            question_id=valued.tree.question.question_id,
            node_id=str(node.address),
            value=value,
        )


def dpo_rows(valued: ValuedTree, role: Role) -> Iterator[DpoRow]:
    """One row for each right and wrong sibling, all combinations under each parent."""
    for siblings in families(valued, role):
        known = list(labelled(valued, siblings))
        for chosen in (one for one in known if one.right):
            yield from (preference(valued, role, chosen, rejected) for rejected in known if not rejected.right)


def preference(valued: ValuedTree, role: Role, chosen: Labelled, rejected: Labelled) -> DpoRow:
    """Pair two siblings."""
    return DpoRow(
        prompt=turns(chosen.node.prompt),
        chosen=reply(chosen.node),
        rejected=reply(rejected.node),
        row_id=row_id(f"dpo-{role}", valued, chosen.node, rejected.node),
        question_id=valued.tree.question.question_id,
        chosen_node_id=str(chosen.node.address),
        rejected_node_id=str(rejected.node.address),
        chosen_value=chosen.value,
        rejected_value=rejected.value,
        margin=chosen.value - rejected.value,
    )


def labelled(valued: ValuedTree, nodes: Iterable[Node]) -> Iterator[Labelled]:
    """The nodes fit to train on: those with a label and a whole text. A cut or empty text would teach just that."""
    for node in nodes:
        value = valued.values.get(node.address)
        if value is not None and node.status is NodeStatus.OK:
            yield Labelled(node, value.mean, value.label(valued.threshold))


def families(valued: ValuedTree, role: Role) -> list[list[Node]]:
    """One role's nodes, siblings together, in order."""
    by_parent: dict[Address, list[Node]] = {}
    for node in role_nodes(valued, role):
        by_parent.setdefault(node.address.parent, []).append(node)
    return list(by_parent.values())


def row_id(config: str, valued: ValuedTree, *nodes: Node) -> str:
    """Name a row by where it comes from, such as `dpo-refiner/q17/2.0.1-2.0.2`: the same row in every version."""
    return "/".join([config, valued.tree.question.question_id, "-".join(str(node.address) for node in nodes)])


class RowSource(NamedTuple):
    """What a row's id says: its file's config, its question, and its node, or the chosen and the rejected one."""

    config: str
    question_id: str
    node_ids: tuple[str, ...]


def parse_row_id(text: str) -> RowSource:
    """Read a row's id; raises `ValueError` where it is none. A question's id may itself hold slashes."""
    config, first, rest = text.partition("/")
    question_id, last, nodes = rest.rpartition("/")
    if not (first and last and nodes):
        raise ValueError(f"{text!r} is not a row id; one reads like dpo-refiner/QUESTION_ID/2.0.1-2.0.2")
    return RowSource(config, question_id, tuple(nodes.split("-")))


def turns(prompt: Iterable[Message]) -> list[MessageRow]:
    """Write messages as rows hold them."""
    return [MessageRow(role=message.role, content=message.content) for message in prompt]


def reply(node: Node) -> list[MessageRow]:
    """Write a node's text as the assistant's turn."""
    return [MessageRow(role="assistant", content=node.text)]


def trajectory_rows(valued: ValuedTree) -> Iterator[TrajectoryRow]:
    """One row a node, depth first."""
    return (trajectory_row(valued, valued.tree.nodes[address]) for address in sorted(valued.tree.nodes))


def trajectory_row(valued: ValuedTree, node: Node) -> TrajectoryRow:
    """Write one node with its grade and its worth."""
    completion, grade, value = node.completion, valued.grades.get(node.address), valued.values.get(node.address)
    evaluation = grade.evaluation if grade else None
    return TrajectoryRow(
        question_id=valued.tree.question.question_id,
        node_id=str(node.address),
        role=node.role.value,
        model=completion.model,
        text=completion.text,
        reasoning=completion.reasoning,
        answer=grade.answer if grade else None,
        finish_reason=completion.finish_reason,
        status=node.status.value,
        reward=value.mean if value and node.address.is_leaf else None,
        value=value.mean if value else None,
        label=value.label(valued.threshold) if value else None,
        known_leaves=value.known_leaves if value else 0,
        outcome=grade.outcome.value if grade else None,
        grader=grade.grader if grade else None,
        correctness_score=evaluation.correctness_score if evaluation else None,
        reasoning_score=evaluation.reasoning_score if evaluation else None,
        explanation=list(evaluation.explanation) if evaluation else None,
        key_matches=list(evaluation.key_matches) if evaluation else None,
        error=grade.error if grade else None,
        request_key=completion.key,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cost_usd=completion.cost_usd,
        latency_s=completion.latency_s,
    )


def question_row(tree: Tree) -> QuestionRow:
    """Write a tree's question, and whether the tree is complete."""
    question: Question = tree.question
    return QuestionRow(
        question_id=question.question_id,
        question=question.question,
        ground_truth=question.ground_truth,
        choices=list(question.choices),
        complete=tree.complete,
        metadata=canonical_json(question.metadata).decode("utf-8", "surrogatepass"),
    )


def scored_examples(valued: ValuedTree, role: Role) -> Iterator[ScoredExample]:
    """One example for each of the role's nodes that has a value, its text whole or not."""
    for node in role_nodes(valued, role):
        value, evaluation = valued.values.get(node.address), valued.evaluation(node.address)
        if value is not None and evaluation is not None:
            scored = ScoredExample(
                question=valued.tree.question.question,
                solution=node.text,
                score=value.mean,
                evaluation=EvaluationRow(
                    correctness_score=float(evaluation.correctness_score),
                    reasoning_score=float(evaluation.reasoning_score),
                    explanation=list(evaluation.explanation),
                    key_matches=list(evaluation.key_matches),
                ),
            )
            yield with_ancestors(scored, valued, node)


def with_ancestors(scored: ScoredExample, valued: ValuedTree, node: Node) -> ScoredExample:
    """Add the texts that the node answered to: none for a generation, the solution for a critique, both for a leaf."""
    ancestors = [valued.tree.nodes[Address(node.address[:depth])].text for depth in range(1, len(node.address))]
    match ancestors:
        case [solution]:
            return VerifierExample(**scored, generated_solution=solution)
        case [solution, critique]:
            return RefinerExample(**scored, generated_solution=solution, verification=critique)
    return scored
