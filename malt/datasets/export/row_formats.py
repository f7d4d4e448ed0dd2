"""A version's rows as other tools write them: pure functions from one row to one record, key by key in a fixed order.

What a role saw besides its last question (system text, worked examples as earlier turns) stays context: where a format
can say so, only the last reply is trained on, as TRL does with a prompt and a completion.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from malt.datasets.rows.tables import DpoRow, KtoRow, MessageRow, SftRow
from malt.errors import VersionError

Record = Mapping[str, object]
"""One line of a JSONL file."""

SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


class Talk(NamedTuple):
    """A prompt taken apart."""

    system: str
    """Empty where there is none."""
    history: list[list[str]]
    """Earlier turns: what the user said and what was replied, pair by pair."""
    question: str


def openai_supervised(row: SftRow) -> Record:
    """OpenAI's chat format; `weight` 0 keeps earlier replies out of the loss."""
    prompt = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in row["prompt"]]
    return {"messages": [*prompt, *row["completion"]]}


def openai_preference(row: DpoRow) -> Record:
    """OpenAI's preference format."""
    return {
        "input": {"messages": row["prompt"]},
        "preferred_output": row["chosen"],
        "non_preferred_output": row["rejected"],
    }


def sharegpt(row: SftRow) -> Record:
    """One conversation of `from` and `value`, the reply last."""
    return {"id": row["row_id"], "conversations": sharegpt_turns(row, row["completion"])}


def alpaca(row: SftRow) -> Record:
    """Instruction and output; the system text and earlier turns in LLaMA-Factory's columns for them."""
    talk = taken_apart(row["prompt"], row["row_id"])
    return {
        "id": row["row_id"],
        "instruction": talk.question,
        "input": "",
        "output": text_of(row["completion"]),
        "system": talk.system,
        "history": talk.history,
    }


def axolotl_supervised(row: SftRow) -> Record:
    """Messages that say themselves whether they are trained on: the reply is, the turns before it are not."""
    seen = [{**turn, "train": False} for turn in row["prompt"]]
    return {"id": row["row_id"], "messages": [*seen, *({**turn, "train": True} for turn in row["completion"])]}


def axolotl_preference(row: DpoRow) -> Record:
    """What `chat_template.default` reads: the prompt's messages, and one message on each side."""
    return {
        "id": row["row_id"],
        "messages": row["prompt"],
        "chosen": row["chosen"][-1],
        "rejected": row["rejected"][-1],
    }


def axolotl_unpaired(row: KtoRow) -> Record:
    """What `chatml.argilla_chat` and `llama3.argilla_chat` read: one conversation, and whether its end is wanted."""
    return {"id": row["row_id"], "completion": [*row["prompt"], *row["completion"]], "label": row["label"]}


def llamafactory_preference(row: DpoRow) -> Record:
    """ShareGPT's turns up to the question, and one turn on each side."""
    return {
        "id": row["row_id"],
        "conversations": sharegpt_turns(row),
        "chosen": sharegpt_turn(row["chosen"][-1]),
        "rejected": sharegpt_turn(row["rejected"][-1]),
    }


def llamafactory_unpaired(row: KtoRow) -> Record:
    """One ShareGPT conversation, and whether its end is wanted."""
    conversations = sharegpt_turns(row, row["completion"])
    return {"id": row["row_id"], "conversations": conversations, "kto_tag": row["label"]}


def sharegpt_turns(row: SftRow | DpoRow | KtoRow, reply: Iterable[MessageRow] = ()) -> list[dict[str, str]]:
    """Write a row's prompt, and a reply to it, as ShareGPT's turns."""
    taken_apart(row["prompt"], row["row_id"])
    return [sharegpt_turn(turn) for turn in (*row["prompt"], *reply)]


def sharegpt_turn(turn: MessageRow) -> dict[str, str]:
    """Write one turn."""
    return {"from": SHAREGPT_NAMES[turn["role"]], "value": turn["content"]}


def taken_apart(prompt: Sequence[MessageRow], row_id: str) -> Talk:
    """Take a prompt apart. Raises `VersionError` where user and assistant do not speak by turns, the user last."""
    opening = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    turns = prompt[len(opening) :]
    speakers = ["assistant" if place % 2 else "user" for place in range(len(turns))]
    if len(turns) % 2 == 0 or [turn["role"] for turn in turns] != speakers:
        said = ", ".join(turn["role"] for turn in prompt)
        raise VersionError(
            f"{row_id}: its prompt reads {said or 'nothing'}; this format takes user, assistant, …, user"
        )
    texts = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    return Talk(text_of(opening) if opening else "", history, texts[-1])


def text_of(turns: Sequence[MessageRow]) -> str:
    """The text of the last turn."""
    return turns[-1]["content"]
