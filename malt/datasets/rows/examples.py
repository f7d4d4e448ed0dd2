"""From a valued tree to candidates for training, and from those to rows: per role, and the tree itself.

Pure functions; which candidates become rows is said in `selection`, what the rows look like in a file in `tables`. The
rules are MALT's (arXiv 2412.01928, section 4.3 and algorithm 1): every node labelled right is a supervised example of
its role, whatever its parent's label; every right sibling is preferred to every wrong one under the same parent.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypedDict

from malt.canonical_json import canonical_json
from malt.config.spec import Role
from malt.llm.request import Message
from malt.questions.question import Question
from malt.questions.screening import Exclusion, Split
from malt.trees.credit import Length, Value, ValuedTree, role_nodes
from malt.trees.tree import Address, Node, NodeStatus, Tree
from malt.trees.uncertainty import Interval, order_probability, wilson

UNMEASURED = Length(0, 0)


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
    confidence: float


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
    """One node. The grade's columns are empty where the node itself was not judged.

    `own_outcome` and `own_answer` are its diagnosis; `answer` is what was read beside the grade, without one the same.
    `value_low` and `value_high` are the 95 % Wilson interval of the value over the node's known leaves; a leaf's value
    is its grade and no estimate, so there all three are one. Lengths are in tokens, as `[dataset] tokenizer` counts.
    """

    question_id: str
    node_id: str
    role: str
    model: str
    text: str
    prompt_length: int
    text_length: int
    reasoning: str | None
    answer: str | None
    finish_reason: str
    status: str
    reward: float | None
    value: float | None
    value_low: float | None
    value_high: float | None
    label: bool | None
    known_leaves: int
    own_outcome: str | None
    own_answer: str | None
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
    run: str


class QuestionRow(TypedDict):
    """One question, also where its tree is incomplete. `excluded` is the gate that keeps all of its rows out."""

    question_id: str
    question: str
    ground_truth: str
    reference: str
    choices: list[str]
    complete: bool
    split: Split
    excluded: str | None
    excluded_by: str | None
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
    """A node with its value and label."""

    node: Node
    value: Value
    right: bool
    whole: bool
    """Whether its text is fit to train on: one that is cut off, empty or refused would teach just that."""
    length: Length


class Pair(NamedTuple):
    """Two siblings, the one labelled right before the one labelled wrong."""

    chosen: Labelled
    rejected: Labelled

    @property
    def margin(self) -> float:
        """How far their values differ."""
        return self.chosen.value.mean - self.rejected.value.mean

    @property
    def confidence(self) -> float:
        """The probability that their order is right, to four digits. Of leaves it is 1: the grades are what is paired.

        It is worked out to 1e-4, and more digits would depend on the machine.
        """
        if self.chosen.node.address.is_leaf:
            return 1.0
        better, worse = self.chosen.value, self.rejected.value
        return round(order_probability(better.mean, better.known_leaves, worse.mean, worse.known_leaves), 4)


def texts_of(one: Labelled | Pair) -> tuple[Labelled, ...]:
    """The texts of a candidate: one, or the chosen and the rejected one."""
    return tuple(one) if isinstance(one, Pair) else (one,)


def labelled(valued: ValuedTree, role: Role) -> list[Labelled]:
    """The role's nodes that have a label, in order."""
    return [
        Labelled(
            node=node,
            value=value,
            right=value.label(valued.threshold),
            whole=node.status is NodeStatus.OK,
            length=valued.lengths.get(node.address, UNMEASURED),
        )
        for node in role_nodes(valued, role)
        if (value := valued.values.get(node.address)) is not None
    ]


def pairs(known: Iterable[Labelled]) -> list[Pair]:
    """Every right and wrong sibling, all combinations under each parent, in order."""
    families: dict[Address, list[Labelled]] = {}
    for one in known:
        families.setdefault(one.node.address.parent, []).append(one)
    return [
        Pair(chosen, rejected)
        for family in families.values()
        for chosen in family
        for rejected in family
        if chosen.right and not rejected.right
    ]


def sft_row(valued: ValuedTree, role: Role, one: Labelled) -> SftRow:
    """Write a supervised example."""
    return SftRow(
        prompt=turns(one.node.prompt),
        completion=reply(one.node),
        row_id=row_id(f"sft-{role}", valued, one.node),
        question_id=valued.tree.question.question_id,
        node_id=str(one.node.address),
        value=one.value.mean,
    )


def kto_row(valued: ValuedTree, role: Role, one: Labelled) -> KtoRow:
    """Write an unpaired label."""
    return KtoRow(
        prompt=turns(one.node.prompt),
        completion=reply(one.node),
        label=one.right,
        row_id=row_id(f"kto-{role}", valued, one.node),
        question_id=valued.tree.question.question_id,
        node_id=str(one.node.address),
        value=one.value.mean,
    )


def dpo_row(valued: ValuedTree, role: Role, pair: Pair) -> DpoRow:
    """Write a preference pair."""
    chosen, rejected = pair.chosen.node, pair.rejected.node
    return DpoRow(
        prompt=turns(chosen.prompt),
        chosen=reply(chosen),
        rejected=reply(rejected),
        row_id=row_id(f"dpo-{role}", valued, chosen, rejected),
        question_id=valued.tree.question.question_id,
        chosen_node_id=str(chosen.address),
        rejected_node_id=str(rejected.address),
        chosen_value=pair.chosen.value.mean,
        rejected_value=pair.rejected.value.mean,
        margin=pair.margin,
        confidence=pair.confidence,
    )


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


@lru_cache(maxsize=64)
def turns(prompt: tuple[Message, ...]) -> list[MessageRow]:
    """Write messages as rows hold them: siblings' rows share one list, and nobody changes it."""
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
    evaluation, own = grade.evaluation if grade else None, valued.diagnosis.get(node.address)
    interval, length = interval_of(node, value) if value else None, valued.lengths.get(node.address, UNMEASURED)
    return TrajectoryRow(
        question_id=valued.tree.question.question_id,
        node_id=str(node.address),
        role=node.role.value,
        model=completion.model,
        text=completion.text,
        prompt_length=length.prompt,
        text_length=length.text,
        reasoning=completion.reasoning,
        answer=grade.answer if grade else own.answer if own else None,
        finish_reason=completion.finish_reason,
        status=node.status.value,
        reward=value.mean if value and node.address.is_leaf else None,
        value=value.mean if value else None,
        value_low=interval.low if interval else None,
        value_high=interval.high if interval else None,
        label=value.label(valued.threshold) if value else None,
        known_leaves=value.known_leaves if value else 0,
        own_outcome=own.outcome.value if own else None,
        own_answer=own.answer if own else None,
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
        run=completion.run,
    )


def interval_of(node: Node, value: Value) -> Interval:
    """The 95 % interval of a node's value, to twelve digits; a leaf's value is its grade, which is no estimate."""
    if node.address.is_leaf:
        return Interval(value.mean, value.mean)
    return Interval(*(round(bound, 12) for bound in wilson(value.mean, value.known_leaves)))


def question_row(tree: Tree, split: Split, excluded: Exclusion | None) -> QuestionRow:
    """Write a tree's question, whether the tree is complete, and what was known of it before it was asked."""
    question: Question = tree.question
    return QuestionRow(
        question_id=question.question_id,
        question=question.question,
        ground_truth=question.ground_truth,
        reference=question.reference,
        choices=list(question.choices),
        complete=tree.complete,
        split=split,
        excluded=excluded.reason if excluded else None,
        excluded_by=excluded.by if excluded else None,
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
    match [valued.tree.nodes[address].text for address in node.address.path[:-1]]:
        case [solution]:
            return VerifierExample(**scored, generated_solution=solution)
        case [solution, critique]:
            return RefinerExample(**scored, generated_solution=solution, verification=critique)
    return scored
