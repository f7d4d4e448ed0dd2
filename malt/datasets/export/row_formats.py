"""Rows in the formats of other tools: pure functions from a row, or a tree, to records in a fixed key order.

The system text and worked examples (earlier turns) of a prompt stay context: where a format can say so, only the last
reply is trained on, as TRL does with a prompt and a completion.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

from malt.config.roles import PLAYERS
from malt.datasets.rows.tables import DpoRow, KtoRow, MessageRow, QuestionRow, SftRow, TrajectoryRow
from malt.errors import VersionError
from malt.trees.tree import NodeStatus

Record = Mapping[str, object]
"""One line of a JSONL file."""

STEPWISE_COLUMNS = ("question_id", "node_id", "text", "status", "value", "label")
"""Columns of a node that stepwise rows are made from."""

_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


class _ParsedPrompt(NamedTuple):
    """Parts of a prompt that formats hold separately."""

    system: str
    """System text; empty where there is none."""
    history: list[list[str]]
    """Earlier turns, as pairs of the user's text and the reply."""
    question: str


class StepwiseRow(TypedDict):
    """One path; its lists are parallel, in the order of the roles. `malt explain VERSION ID` explains its leaf."""

    id: str
    question_id: str
    node_ids: list[str]
    prompt: str
    completions: list[str]
    labels: list[bool]
    values: list[float]


def openai_supervised(row: SftRow) -> Record:
    """OpenAI's chat format; `weight` 0 keeps earlier replies out of the loss."""
    prompt = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in row["prompt"]]
    return {"messages": [*prompt, *row["completion"]]}


def openai_preference(row: DpoRow) -> Record:
    prompt = {"messages": row["prompt"]}
    return {"input": prompt, "preferred_output": row["chosen"], "non_preferred_output": row["rejected"]}


def sharegpt(row: SftRow) -> Record:
    """One conversation of `from` and `value`, the reply last."""
    return {"id": row["row_id"], "conversations": _sharegpt_turns(row, row["completion"])}


def alpaca(row: SftRow) -> Record:
    """Instruction and output; the system text and earlier turns in LLaMA-Factory's columns for them."""
    prompt = _parse_prompt(row)
    return {
        "id": row["row_id"],
        "instruction": prompt.question,
        "input": "",
        "output": _text_of(row["completion"]),
        "system": prompt.system,
        "history": prompt.history,
    }


def axolotl_supervised(row: SftRow) -> Record:
    """Messages with a flag `train`: true for the reply, false for the turns before it."""
    prompt = [{**turn, "train": False} for turn in row["prompt"]]
    return {"id": row["row_id"], "messages": [*prompt, *({**turn, "train": True} for turn in row["completion"])]}


def axolotl_preference(row: DpoRow) -> Record:
    """Input of `chat_template.default`: the prompt's messages, and one message on each side."""
    chosen, rejected = row["chosen"][-1], row["rejected"][-1]
    return {"id": row["row_id"], "messages": row["prompt"], "chosen": chosen, "rejected": rejected}


def axolotl_unpaired(row: KtoRow) -> Record:
    """Input of `chatml.argilla_chat` and `llama3.argilla_chat`: one conversation, and whether its reply is good."""
    return {"id": row["row_id"], "completion": [*row["prompt"], *row["completion"]], "label": row["label"]}


def llamafactory_preference(row: DpoRow) -> Record:
    """ShareGPT's turns up to the question, and one turn on each side."""
    chosen, rejected = _sharegpt_turn(row["chosen"][-1]), _sharegpt_turn(row["rejected"][-1])
    return {"id": row["row_id"], "conversations": _sharegpt_turns(row), "chosen": chosen, "rejected": rejected}


def llamafactory_unpaired(row: KtoRow) -> Record:
    """One ShareGPT conversation, and whether its reply is good."""
    conversations = _sharegpt_turns(row, row["completion"])
    return {"id": row["row_id"], "conversations": conversations, "kto_tag": row["label"]}


def _sharegpt_turns(row: SftRow | DpoRow | KtoRow, reply: Iterable[MessageRow] = ()) -> list[dict[str, str]]:
    _parse_prompt(row)
    return [_sharegpt_turn(turn) for turn in (*row["prompt"], *reply)]


def _sharegpt_turn(turn: MessageRow) -> dict[str, str]:
    return {"from": _SHAREGPT_NAMES[turn["role"]], "value": turn["content"]}


def _parse_prompt(row: SftRow | DpoRow | KtoRow) -> _ParsedPrompt:
    """Split a row's prompt. Raises `VersionError` unless user and assistant alternate, the user first and last."""
    prompt = row["prompt"]
    system = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]
    expected = ["assistant" if index % 2 else "user" for index in range(len(turns))]
    if len(turns) % 2 == 0 or [turn["role"] for turn in turns] != expected:
        roles = ", ".join(turn["role"] for turn in prompt)
        raise VersionError(
            f"{row['row_id']}: its prompt has turns {roles or 'none'}; this format takes user, assistant, …, user"
        )
    texts = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    return _ParsedPrompt(_text_of(system) if system else "", history, texts[-1])


def _text_of(turns: Sequence[MessageRow]) -> str:
    return turns[-1]["content"]


def stepwise_rows(
    question: QuestionRow, nodes: Iterable[TrajectoryRow], left_out: Counter[str]
) -> Iterator[StepwiseRow]:
    """Yield a tree's paths in order, if all three nodes have a whole text and a label; count the others by fault."""
    for path in _paths(nodes):
        fault = question["excluded"] or _fault_of(path)
        if fault is None:
            yield _stepwise_row(question, path)
        else:
            left_out[fault] += 1


def _paths(nodes: Iterable[TrajectoryRow]) -> Iterator[list[TrajectoryRow]]:
    """Yield the nodes from a generation to each leaf. The nodes come depth first."""
    path: list[TrajectoryRow] = []
    for node in nodes:
        depth = node["node_id"].count(".")
        path = [*path[:depth], node]
        if len(path) == len(PLAYERS):
            yield path


def _fault_of(path: list[TrajectoryRow]) -> str | None:
    """Return why a path gives no row; None where it gives one. A flawed text may be labelled for its flaw alone."""
    if any(node["status"] != NodeStatus.OK for node in path):
        return "not_whole"
    return "no_label" if any(node["label"] is None for node in path) else None


def _stepwise_row(question: QuestionRow, path: list[TrajectoryRow]) -> StepwiseRow:
    return StepwiseRow(
        id=f"{question['question_id']}/{path[-1]['node_id']}",
        question_id=question["question_id"],
        node_ids=[node["node_id"] for node in path],
        prompt=question["question"],
        completions=[node["text"] for node in path],
        labels=[cast(bool, node["label"]) for node in path],
        values=[cast(float, node["value"]) for node in path],
    )
