"""Explanation of a row, by its id: its texts, the grades of their leaves, the arithmetic of the value, and the gates.

Everything is recomputed from the leaves' grades; whether the files still say the same is for `verify`.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from malt.config.base import Recorded
from malt.config.roles import PLAYERS, Role
from malt.datasets.check.verify import parent_of
from malt.datasets.rows.examples import RowSource, parse_row_id, trajectory_row
from malt.datasets.rows.gates import Context
from malt.datasets.rows.selection import Decision, GateTrace
from malt.datasets.rows.tables import (
    KINDS,
    QUESTIONS_FILE,
    ROLE_FILES,
    TEXT_KINDS,
    TRAJECTORIES_FILE,
    DpoRow,
    Kind,
    KtoRow,
    MessageRow,
    QuestionRow,
    SftRow,
    role_file,
)
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import Row, exclusion_of, read_file, read_question_row, stored_tree
from malt.errors import PromptError, VersionError
from malt.grading.grades import Evaluation
from malt.prompts import load_prompts
from malt.trees.credit import ValuedTree
from malt.trees.growth import build_request
from malt.trees.tree import Address, Node

_CONFIGS: Mapping[str, tuple[Kind, Role]] = {f"{kind}-{role}": (kind, role) for kind in KINDS for role in PLAYERS}
"""Kind and role of training rows, by the first part of their ids."""
_NEAR = 3
"""Number of ids that an error suggests."""


def _find_question(version: DatasetVersion, row_id: str) -> tuple[RowSource, QuestionRow]:
    for source in _read_id(row_id):
        question = read_question_row(version, source.question_id)
        if question is not None:
            return source, question
    if read_question_row(version, row_id):
        raise VersionError(
            f"{row_id!r} is a question of {version.reference}; its tree: malt show {version.reference} {row_id}; "
            f"one of its nodes: {row_id}/0.0.0"
        )
    raise _unknown_id_error(version, row_id, _find_near_questions(version, row_id))


def _read_id(row_id: str) -> Iterator[RowSource]:
    """Yield the possible readings of an id: question ids may hold slashes, so a row's id may also be a node's."""
    config, _, rest = row_id.partition("/")
    if config in _CONFIGS and all(rest.rpartition("/")):
        yield parse_row_id(row_id)
    question_id, _, node_id = row_id.rpartition("/")
    if question_id:
        yield RowSource("", question_id, (node_id,))


def _find_near_questions(version: DatasetVersion, row_id: str) -> list[str]:
    known = read_file(version, QUESTIONS_FILE, columns=["question_id"])
    question_ids = [str(row["question_id"]) for row in known]
    config, _, rest = row_id.partition("/")
    if row_id.endswith("/"):
        return []
    near_configs = [""] if config in question_ids else _find_close(config, list(_CONFIGS), cutoff=0.6)
    for kind in near_configs or [""]:
        question_id, _, nodes = (rest if kind else row_id).rpartition("/")
        found = _find_close(question_id, question_ids, cutoff=0.5)
        if found:
            return [f"{kind}/{each}/{nodes}" if kind else f"{each}/{nodes}" for each in found]
    return []


def _find_close(text: str, others: Sequence[str], cutoff: float = 0.0) -> list[str]:
    return difflib.get_close_matches(text, others, n=_NEAR, cutoff=cutoff)


def _unknown_id_error(version: DatasetVersion, row_id: str, near: Sequence[str]) -> VersionError:
    forms = "an id reads like sft-verifier/QUESTION_ID/2.0, dpo-refiner/QUESTION_ID/2.0.1-2.0.2 or QUESTION_ID/2.0.1"
    return VersionError(f"{version.reference} has no {row_id!r}; " + (f"near: {', '.join(near)}" if near else forms))


def _find_nodes(version: DatasetVersion, row_id: str, source: RowSource, valued: ValuedTree) -> tuple[Address, ...]:
    """Find the nodes that an id names: one, or two siblings for a pair."""
    kind, role = _CONFIGS.get(source.config, (None, None))
    nodes = {str(address): address for address in valued.tree.nodes}
    addresses = tuple(nodes[node_id] for node_id in source.node_ids if node_id in nodes)
    wanted = 2 if kind == "dpo" else 1
    if len(set(addresses)) != wanted or len(source.node_ids) != wanted or len({each.parent for each in addresses}) > 1:
        played = [node_id for node_id, address in nodes.items() if role in (None, address.role)]
        near = _find_near_pairs(source, played) if wanted == 2 else _find_close(source.node_ids[0], played)
    elif role in (None, addresses[0].role):
        return addresses
    else:
        source = source._replace(config=f"{kind}-{addresses[0].role}")
        near = ["-".join(source.node_ids)]
    start = "/".join([*filter(None, [source.config]), source.question_id])
    raise _unknown_id_error(version, row_id, [f"{start}/{each}" for each in near])


def _find_near_pairs(source: RowSource, node_ids: Sequence[str]) -> list[str]:
    first = _find_close(source.node_ids[0], node_ids)[0]
    family = [each for each in node_ids if each.rpartition(".")[0] == first.rpartition(".")[0] and each != first]
    return [f"{first}-{other}" for other in _find_close(source.node_ids[-1], family)]


_MOST_SUMMANDS = 30
"""Leaves up to which a sum lists each reward; beyond that, equal rewards are grouped."""


class PromptMessage(Recorded):
    """One turn of a prompt."""

    role: str
    content: str


class LeafExplanation(Recorded):
    """One leaf's grade."""

    node_id: str
    reward: float | None
    """Reward of the leaf; None where it counts for nothing, since its grade is unknown or its text truncated."""
    outcome: str
    read: str | None
    """Final answer that the grader read."""
    grader: str
    """Kind of the grader that decided."""
    explanation: tuple[str, ...]
    error: str | None
    """Reason why the outcome is unknown."""


class TextExplanation(Recorded):
    """One text, its value and its label."""

    node_id: str
    role: str
    model: str
    status: str
    text: str
    reasoning: str | None
    label: bool | None
    value: float | None
    value_low: float | None
    """Lower end of the value's 95 % interval; for a leaf the value itself, which is a grade and no estimate."""
    value_high: float | None
    """Upper end of the interval."""
    known_leaves: int
    arithmetic: str
    """Calculation of value and label from the leaves."""
    evaluation: Evaluation | None
    """Evaluation of the text itself where it was judged, else its known leaves' evaluations pooled."""
    own_answer: str | None
    """Final answer of the text itself: for diagnosis, never for credit."""
    own_outcome: str | None
    leaves: tuple[LeafExplanation, ...]


class Explanation(Recorded):
    """Explanation of one row, or of one node."""

    version: str
    row_id: str
    """Id that the caller gave: of a row in `sft`, `dpo` or `kto`, or a node's `QUESTION_ID/NODE_ID`."""
    file: str
    """File that holds the row, or would hold it."""
    question_id: str
    question: str
    ground_truth: str
    role: str
    prompt: tuple[PromptMessage, ...] | None
    """Prompt that the role saw; None where it can no longer be found."""
    prompt_from: str
    """Place where the prompt was found, or the reason why it was not."""
    text: TextExplanation
    """Text of the row; of a pair, the text named first."""
    sibling: TextExplanation | None
    """Second text of a pair."""
    margin: float | None
    """Difference between a pair's values; None where the two texts are no candidate for a pair."""
    confidence: float | None
    """Probability that the pair's order is right."""
    decision: Decision | None
    """Decision on the row: kept, or left out by a gate; None for a node, which the trajectories always hold."""
    related: tuple[Decision, ...]
    """Decisions on other rows of the same texts."""


def explain(version: DatasetVersion, row_id: str) -> Explanation:
    """Explain a row by its id, even one that was left out, or a node by `QUESTION_ID/NODE_ID`.

    Raises `VersionError` for an id that cannot be in this version, and suggests similar ones.
    """
    source, question = _find_question(version, row_id)
    valued = stored_tree(version, question)
    addresses = _find_nodes(version, row_id, source, valued)
    kind, _ = _CONFIGS.get(source.config, (None, None))  # no kind for a node
    nodes = [valued.tree.nodes[address] for address in addresses]
    role = nodes[0].role
    rows = _read_training_rows(version, role, question["question_id"])
    context = Context(valued, role, version.spec.dataset, exclusion_of(question))
    decisions = GateTrace(context, {str(row["row_id"]) for row in rows})
    pair = decisions.pair(*addresses) if len(nodes) == 2 else None
    prompt, prompt_from = _find_prompt(nodes[0], valued, rows, version)
    return Explanation(
        version=version.reference,
        row_id=row_id,
        file=role_file(kind, role, question["split"]) if kind else TRAJECTORIES_FILE,
        question_id=question["question_id"],
        question=question["question"],
        ground_truth=question["ground_truth"],
        role=role.value,
        prompt=prompt,
        prompt_from=prompt_from,
        text=_explain_text(valued, nodes[0]),
        sibling=_explain_text(valued, nodes[1]) if len(nodes) == 2 else None,
        margin=pair.margin if pair else None,
        confidence=pair.confidence if pair else None,
        decision=decisions.decide(kind, *addresses) if kind else None,
        related=tuple(other for other in _decide_rest(addresses, decisions) if other.row_id != row_id),
    )


def _decide_rest(addresses: Sequence[Address], decisions: GateTrace) -> Iterator[Decision]:
    """Yield the decisions on other rows: all of a single text; of a pair, those on each text by itself."""
    if len(addresses) == 1:
        return decisions.decide_all(addresses[0])
    return (decisions.decide(kind, address) for address in addresses for kind in TEXT_KINDS)


def _find_prompt(
    node: Node, valued: ValuedTree, rows: Sequence[Row], version: DatasetVersion
) -> tuple[tuple[PromptMessage, ...] | None, str]:
    """Return the prompt that a role saw, and its source: a row of a sibling, or the unchanged prompt files."""
    parent = str(node.address.parent)
    for row in rows:
        if parent_of(cast("SftRow | DpoRow | KtoRow", row)) == parent:
            seen = cast("list[MessageRow]", row["prompt"])
            return tuple(PromptMessage(**turn) for turn in seen), str(row["row_id"])
    spec = version.manifest.spec
    missing = f"no row of {parent or 'the question'}'s children was kept, and prompt set {spec.prompts!r}"
    try:
        prompts = load_prompts(spec.prompts)
    except PromptError as error:
        return None, f"{missing} cannot be read: {error}"
    if _digests_of(prompts.digests, node.role) != _digests_of(version.manifest.prompts, node.role):
        return None, f"{missing} has changed since"
    question, nodes = valued.tree.question, valued.tree.nodes
    texts = [nodes[above].text for above in node.address.path[:-1]]
    request = build_request(question, node.address.parent, texts, spec, prompts)
    seen_now = tuple(PromptMessage(role=turn.role, content=turn.content) for turn in request.messages)
    return seen_now, f"prompt set {spec.prompts!r}, whose files have the manifest's digests"


def _digests_of(digests: dict[str, str], role: Role) -> dict[str, str]:
    return {path: sha256 for path, sha256 in digests.items() if path.startswith(f"{role}/")}


def _explain_text(valued: ValuedTree, node: Node) -> TextExplanation:
    row = dict(trajectory_row(valued, node))
    return TextExplanation(
        **{name: row[name] for name in TextExplanation.model_fields.keys() & row.keys()},
        arithmetic=write_arithmetic(valued, node.address),
        evaluation=valued.evaluation(node.address),
        leaves=tuple(_explain_leaf(valued, leaf) for leaf in valued.leaves_below(node.address)),
    )


def _explain_leaf(valued: ValuedTree, leaf: Address) -> LeafExplanation:
    grade, value = valued.grades[leaf], valued.values.get(leaf)
    return LeafExplanation(
        node_id=str(leaf),
        reward=value.mean if value else None,
        outcome=grade.outcome.value,
        read=grade.answer,
        grader=grade.grader,
        explanation=grade.evaluation.explanation if grade.evaluation else (),
        error=grade.error,
    )


def write_arithmetic(valued: ValuedTree, address: Address) -> str:
    """Write the calculation of a value and its label, such as `0.67 = (1 + 1 + 0) / 3 leaves, above 0.5: positive`."""
    value, leaves = valued.values.get(address), valued.leaves_below(address)
    if value is None:
        return "no value and no label: no grade below is known"
    is_right = value.label(valued.threshold)
    verdict = f"{'above' if is_right else 'not above'} {valued.threshold:g}: {'positive' if is_right else 'negative'}"
    worth = _write_value(value.mean, valued.threshold, is_right)
    if address.is_leaf:
        return f"{worth}, its own grade, {verdict}"
    rewards = [valued.values[leaf].mean for leaf in leaves if leaf in valued.values]
    known = f"{len(rewards)} known of " if len(rewards) < len(leaves) else ""
    known += f"{len(leaves)} {'leaf' if len(leaves) == 1 else 'leaves'}"
    return f"{worth} = ({_write_sum(rewards)}) / {known}, {verdict}"


def _write_sum(rewards: Sequence[float]) -> str:
    if len(rewards) <= _MOST_SUMMANDS:
        return " + ".join(f"{reward:.4g}" for reward in rewards)
    return " + ".join(f"{count} x {reward:.4g}" for reward, count in sorted(Counter(rewards).items(), reverse=True))


def _write_value(mean: float, threshold: float, is_right: bool) -> str:
    """Write a value with two digits, or with enough to show on which side of the threshold it lies."""
    digits = f"{mean:.2f}"
    return digits if (float(digits) > threshold) == is_right else f"{mean:.12g}"


def _read_training_rows(version: DatasetVersion, role: Role, question_id: str) -> list[Row]:
    files = [path for path, file in ROLE_FILES.items() if file.role is role]
    return [row for path in files for row in read_file(version, path, question_id)]
