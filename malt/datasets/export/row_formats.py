"""A version's rows as other tools write them: pure functions from a row, or a tree, to records in a fixed key order.

What a role saw besides its last question (system text, worked examples as earlier turns) stays context: where a format
can say so, only the last reply is trained on, as TRL does with a prompt and a completion.
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
"""What is read of a node."""

_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


class _ParsedPrompt(NamedTuple):
    """A prompt's messages, in the parts that formats ask for."""

    system: str
    """Empty where there is none."""
    history: list[list[str]]
    """Earlier turns: what the user said and what was replied, pair by pair."""
    question: str


class StepwiseRow(TypedDict):
    """One path; its lists are parallel, and in the order of the roles. `malt explain VERSION ID` tells of its leaf."""

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
    asked = {"messages": row["prompt"]}
    return {"input": asked, "preferred_output": row["chosen"], "non_preferred_output": row["rejected"]}


def sharegpt(row: SftRow) -> Record:
    """One conversation of `from` and `value`, the reply last."""
    return {"id": row["row_id"], "conversations": _sharegpt_turns(row, row["completion"])}


def alpaca(row: SftRow) -> Record:
    """Instruction and output; the system text and earlier turns in LLaMA-Factory's columns for them."""
    talk = _take_apart(row)
    return {
        "id": row["row_id"],
        "instruction": talk.question,
        "input": "",
        "output": _text_of(row["completion"]),
        "system": talk.system,
        "history": talk.history,
    }


def axolotl_supervised(row: SftRow) -> Record:
    """Messages that say themselves whether they are trained on: the reply is, the turns before it are not."""
    seen = [{**turn, "train": False} for turn in row["prompt"]]
    return {"id": row["row_id"], "messages": [*seen, *({**turn, "train": True} for turn in row["completion"])]}


def axolotl_preference(row: DpoRow) -> Record:
    """What `chat_template.default` reads: the prompt's messages, and one message on each side."""
    chosen, rejected = row["chosen"][-1], row["rejected"][-1]
    return {"id": row["row_id"], "messages": row["prompt"], "chosen": chosen, "rejected": rejected}


def axolotl_unpaired(row: KtoRow) -> Record:
    """What `chatml.argilla_chat` and `llama3.argilla_chat` read: one conversation, and whether its end is wanted."""
    return {"id": row["row_id"], "completion": [*row["prompt"], *row["completion"]], "label": row["label"]}


def llamafactory_preference(row: DpoRow) -> Record:
    """ShareGPT's turns up to the question, and one turn on each side."""
    chosen, rejected = _sharegpt_turn(row["chosen"][-1]), _sharegpt_turn(row["rejected"][-1])
    return {"id": row["row_id"], "conversations": _sharegpt_turns(row), "chosen": chosen, "rejected": rejected}


def llamafactory_unpaired(row: KtoRow) -> Record:
    """One ShareGPT conversation, and whether its end is wanted."""
    conversations = _sharegpt_turns(row, row["completion"])
    return {"id": row["row_id"], "conversations": conversations, "kto_tag": row["label"]}


def _sharegpt_turns(row: SftRow | DpoRow | KtoRow, reply: Iterable[MessageRow] = ()) -> list[dict[str, str]]:
    _take_apart(row)
    return [_sharegpt_turn(turn) for turn in (*row["prompt"], *reply)]


def _sharegpt_turn(turn: MessageRow) -> dict[str, str]:
    return {"from": _SHAREGPT_NAMES[turn["role"]], "value": turn["content"]}


def _take_apart(row: SftRow | DpoRow | KtoRow) -> _ParsedPrompt:
    """Take its prompt apart. Raises `VersionError` where user and assistant do not speak by turns, the user last."""
    prompt = row["prompt"]
    opening = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    turns = prompt[len(opening) :]
    speakers = ["assistant" if place % 2 else "user" for place in range(len(turns))]
    if len(turns) % 2 == 0 or [turn["role"] for turn in turns] != speakers:
        said = ", ".join(turn["role"] for turn in prompt)
        raise VersionError(
            f"{row['row_id']}: its prompt reads {said or 'nothing'}; this format takes user, assistant, …, user"
        )
    texts = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    return _ParsedPrompt(_text_of(opening) if opening else "", history, texts[-1])


def _text_of(turns: Sequence[MessageRow]) -> str:
    return turns[-1]["content"]


def stepwise_rows(
    question: QuestionRow, nodes: Iterable[TrajectoryRow], left_out: Counter[str]
) -> Iterator[StepwiseRow]:
    """Yield a tree's paths in its order, those whose three nodes are whole texts with a label; count the others."""
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
    """Why a path is no row: a text that is not whole would be judged for its end; None where it is one."""
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
