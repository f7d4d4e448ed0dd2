"""Candidates for training found in a valued tree, and rows written from candidates, nodes and questions.

Pure functions; `selection` chooses which candidates become rows, `tables` defines the rows. The rules are MALT's (arXiv
2412.01928, section 4.3 and algorithm 1): every node labelled right is a supervised example of its role, whatever its
parent's label; every right sibling is preferred to every wrong one under the same parent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, cast

from malt.canonical_json import canonical_json
from malt.config.roles import Role
from malt.datasets.rows.tables import (
    TEXTS_ABOVE,
    DpoRow,
    EvaluationRow,
    Kind,
    KtoRow,
    MessageRow,
    QuestionRow,
    ScoredExample,
    SftRow,
    TrajectoryRow,
)
from malt.grading.answers import without_stop_tokens
from malt.llm.request import Message
from malt.questions.screening import Exclusion, Split
from malt.trees.credit import Interval, Length, Value, ValuedTree, order_probability, role_nodes, wilson
from malt.trees.tree import Address, Node, NodeStatus, Tree

_UNMEASURED = Length(0, 0)


class Labelled(NamedTuple):
    """A node with its value and label."""

    node: Node
    text: str
    """The node's text without the stop tokens of a chat template at its end, as rows hold it."""
    value: Value
    is_right: bool
    is_whole: bool
    """Whether the text is fit to train on: not truncated, empty or refused, which a model would learn to imitate."""
    length: Length


class Candidate(NamedTuple):
    """Possible row: one text, or two siblings, the one labelled right before the one labelled wrong."""

    texts: tuple[Labelled, ...]

    @property
    def chosen(self) -> Labelled:
        """The text itself, or the better of two."""
        return self.texts[0]

    @property
    def rejected(self) -> Labelled:
        """The worse of two."""
        return self.texts[-1]

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(text.node.address for text in self.texts)

    @property
    def tokens(self) -> int:
        """Length of the row: its prompt and its longest text."""
        return max(text.length.prompt + text.length.text for text in self.texts)

    @property
    def margin(self) -> float:
        return self.chosen.value.mean - self.rejected.value.mean

    @property
    def confidence(self) -> float:
        """Probability that the values are in the right order, to four digits; 1 for leaves: their grades are paired.

        It is computed to 1e-4; more digits would depend on the machine.
        """
        if self.chosen.node.address.is_leaf:
            return 1.0
        better, worse = self.chosen.value, self.rejected.value
        return round(order_probability(better.mean, better.known_leaves, worse.mean, worse.known_leaves), 4)


def label_nodes(valued: ValuedTree, role: Role) -> list[Labelled]:
    """Return the role's nodes that have a label, in order."""
    return [
        Labelled(
            node=node,
            text=(text := without_stop_tokens(node.text)),
            value=value,
            is_right=value.label(valued.threshold),
            is_whole=node.status is NodeStatus.OK and bool(text.strip()),
            length=valued.lengths.get(node.address, _UNMEASURED),
        )
        for node in role_nodes(valued, role)
        if (value := valued.values.get(node.address)) is not None
    ]


def find_candidates(kind: Kind, known: Sequence[Labelled]) -> list[Candidate]:
    """Return the candidates among a role's labelled nodes for one kind of row, in order."""
    if kind == "dpo":
        return pair_siblings(known)
    return [Candidate((one,)) for one in known if one.is_right or kind == "kto"]


def pair_siblings(known: Sequence[Labelled]) -> list[Candidate]:
    """Pair every right with every wrong sibling, all combinations under each parent, in order."""
    families: dict[Address, list[Labelled]] = {}
    for one in known:
        families.setdefault(one.node.address.parent, []).append(one)
    return [
        Candidate((chosen, rejected))
        for family in families.values()
        for chosen, rejected in product(family, repeat=2)
        if chosen.is_right and not rejected.is_right
    ]


def write_rows(
    kind: Kind, valued: ValuedTree, role: Role, candidates: Sequence[Candidate]
) -> Iterator[SftRow | DpoRow | KtoRow]:
    return (_WRITERS[kind](f"{kind}-{role}", valued, candidate) for candidate in candidates)


def _sft_row(config: str, valued: ValuedTree, candidate: Candidate) -> SftRow:
    [one] = candidate.texts
    return SftRow(
        prompt=_message_rows(one.node.prompt),
        completion=_reply_rows(one),
        row_id=row_id(config, valued, *candidate.addresses),
        question_id=valued.tree.question.question_id,
        node_id=str(one.node.address),
        value=one.value.mean,
    )


def _kto_row(config: str, valued: ValuedTree, candidate: Candidate) -> KtoRow:
    return KtoRow(**_sft_row(config, valued, candidate), label=candidate.chosen.is_right)


def _dpo_row(config: str, valued: ValuedTree, candidate: Candidate) -> DpoRow:
    chosen, rejected = candidate.texts
    return DpoRow(
        prompt=_message_rows(chosen.node.prompt),
        chosen=_reply_rows(chosen),
        rejected=_reply_rows(rejected),
        row_id=row_id(config, valued, *candidate.addresses),
        question_id=valued.tree.question.question_id,
        chosen_node_id=str(chosen.node.address),
        rejected_node_id=str(rejected.node.address),
        chosen_value=chosen.value.mean,
        rejected_value=rejected.value.mean,
        margin=candidate.margin,
        confidence=candidate.confidence,
    )


_WRITERS: Mapping[Kind, Callable[[str, ValuedTree, Candidate], SftRow | DpoRow | KtoRow]] = {
    "sft": _sft_row,
    "dpo": _dpo_row,
    "kto": _kto_row,
}


def row_id(config: str, valued: ValuedTree, *addresses: Address) -> str:
    """Return a row's id, made of its source: `dpo-refiner/q17/2.0.1-2.0.2` names the same row in every version."""
    return "/".join([config, valued.tree.question.question_id, "-".join(map(str, addresses))])


class RowSource(NamedTuple):
    """Parts of a row's id: its file's config, its question, and its node, or the chosen and the rejected node."""

    config: str
    question_id: str
    node_ids: tuple[str, ...]


def parse_row_id(text: str) -> RowSource:
    """Parse a row's id, in which the question's id may hold slashes. Raises `ValueError` for any other text."""
    config, first, rest = text.partition("/")
    question_id, last, nodes = rest.rpartition("/")
    if not (first and last and nodes):
        raise ValueError(f"{text!r} is not a row id; one reads like dpo-refiner/QUESTION_ID/2.0.1-2.0.2")
    return RowSource(config, question_id, tuple(nodes.split("-")))


@lru_cache(maxsize=64)
def _message_rows(prompt: tuple[Message, ...]) -> list[MessageRow]:
    """Return messages as rows hold them. Siblings' rows share the cached list, so callers must not change it."""
    return [MessageRow(role=message.role, content=message.content) for message in prompt]


def _reply_rows(one: Labelled) -> list[MessageRow]:
    return [MessageRow(role="assistant", content=one.text)]


def trajectory_rows(valued: ValuedTree) -> Iterator[TrajectoryRow]:
    """Yield one row a node, depth first."""
    return (trajectory_row(valued, valued.tree.nodes[address]) for address in sorted(valued.tree.nodes))


def trajectory_row(valued: ValuedTree, node: Node) -> TrajectoryRow:
    completion, grade, value = node.completion, valued.grades.get(node.address), valued.values.get(node.address)
    evaluation, own = grade.evaluation if grade else None, valued.diagnosis.get(node.address)
    interval, length = _interval_of(node, value) if value else None, valued.lengths.get(node.address, _UNMEASURED)
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


def _interval_of(node: Node, value: Value) -> Interval:
    """Return the 95 % interval of a node's value, to twelve digits; of width 0 for a leaf, whose value is its grade."""
    if node.address.is_leaf:
        return Interval(value.mean, value.mean)
    return Interval(*(round(bound, 12) for bound in wilson(value.mean, value.known_leaves)))


def question_row(tree: Tree, split: Split, excluded: Exclusion | None) -> QuestionRow:
    question = tree.question
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
    """Yield an example for each of the role's nodes that has a value, flawed texts included.

    It also holds the texts above: none for a generation, the solution for a critique, solution and critique for a leaf.
    """
    nodes = valued.tree.nodes
    for node in role_nodes(valued, role):
        value, evaluation = valued.values.get(node.address), valued.evaluation(node.address)
        if value is not None and evaluation is not None:
            scored = ScoredExample(
                question=valued.tree.question.question,
                solution=without_stop_tokens(node.text),
                score=value.mean,
                evaluation=EvaluationRow(
                    correctness_score=float(evaluation.correctness_score),
                    reasoning_score=float(evaluation.reasoning_score),
                    explanation=list(evaluation.explanation),
                    key_matches=list(evaluation.key_matches),
                ),
            )
            above = (without_stop_tokens(nodes[address].text) for address in node.address.path[:-1])
            yield cast("ScoredExample", {**scored, **dict(zip(TEXTS_ABOVE, above, strict=False))})
