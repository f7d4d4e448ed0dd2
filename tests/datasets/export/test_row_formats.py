"""Rows in other tools' formats: each tool's documented example, and no content of a row is lost."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.datasets.export import row_formats
from malt.datasets.rows.files import json_line
from malt.datasets.rows.tables import DpoRow, KtoRow, MessageRow, SftRow
from malt.errors import VersionError

Record = Mapping[str, Any]


def said(role: str, content: str) -> MessageRow:
    return MessageRow(role=role, content=content)


PROMPT = [
    said("system", "Be brief."),
    said("user", "1 + 1?"),
    said("assistant", "2"),
    said("user", "2 + 2?"),
]


def sft(prompt: list[MessageRow], text: str) -> SftRow:
    reply = [said("assistant", text)]
    return SftRow(prompt=prompt, completion=reply, row_id="sft-verifier/q1/0.1", question_id="q1", node_id="0", value=1)


def dpo(prompt: list[MessageRow], chosen: str, rejected: str) -> DpoRow:
    return DpoRow(
        prompt=prompt,
        chosen=[said("assistant", chosen)],
        rejected=[said("assistant", rejected)],
        row_id="dpo-verifier/q1/0.1-0.2",
        question_id="q1",
        chosen_node_id="0.1",
        rejected_node_id="0.2",
        chosen_value=1.0,
        rejected_value=0.0,
        margin=1.0,
        confidence=1.0,
    )


def kto(prompt: list[MessageRow], text: str, label: bool) -> KtoRow:
    reply = [said("assistant", text)]
    return KtoRow(
        prompt=prompt,
        completion=reply,
        label=label,
        row_id="kto-verifier/q1/0.1",
        question_id="q1",
        node_id="0",
        value=1,
    )


SFT, DPO, KTO = sft(PROMPT, "4"), dpo(PROMPT, "4", "5"), kto(PROMPT, "5", label=False)


def test_openai_supervised_trains_on_the_last_reply_alone() -> None:
    assert row_formats.openai_supervised(SFT) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2", "weight": 0},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
        ]
    }


def test_openai_preference_has_one_assistant_message_on_each_side() -> None:
    assert row_formats.openai_preference(DPO) == {
        "input": {"messages": PROMPT},
        "preferred_output": [{"role": "assistant", "content": "4"}],
        "non_preferred_output": [{"role": "assistant", "content": "5"}],
    }


CONVERSATION = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "1 + 1?"},
    {"from": "gpt", "value": "2"},
    {"from": "human", "value": "2 + 2?"},
]


def test_sharegpt_is_a_conversation_that_ends_with_the_reply() -> None:
    conversations = [*CONVERSATION, {"from": "gpt", "value": "4"}]
    assert row_formats.sharegpt(SFT) == {"id": "sft-verifier/q1/0.1", "conversations": conversations}


def test_alpaca_has_the_last_question_as_instruction_and_what_came_before_as_history() -> None:
    assert row_formats.alpaca(SFT) == {
        "id": "sft-verifier/q1/0.1",
        "instruction": "2 + 2?",
        "input": "",
        "output": "4",
        "system": "Be brief.",
        "history": [["1 + 1?", "2"]],
    }


def test_alpaca_without_system_text_and_history_has_its_columns_empty() -> None:
    record = row_formats.alpaca(sft([said("user", "2 + 2?")], "4"))
    assert (record["instruction"], record["system"], record["history"]) == ("2 + 2?", "", [])


def test_axolotl_supervised_says_of_every_message_whether_it_is_trained_on() -> None:
    messages = row_formats.axolotl_supervised(SFT)["messages"]
    assert isinstance(messages, list)
    assert [message.pop("train") for message in messages] == [False, False, False, False, True]
    assert messages == [*PROMPT, {"role": "assistant", "content": "4"}]


def test_axolotl_preference_is_what_chat_template_default_reads() -> None:
    assert row_formats.axolotl_preference(DPO) == {
        "id": "dpo-verifier/q1/0.1-0.2",
        "messages": PROMPT,
        "chosen": {"role": "assistant", "content": "4"},
        "rejected": {"role": "assistant", "content": "5"},
    }


def test_axolotl_unpaired_is_a_conversation_with_a_label() -> None:
    completion = [*PROMPT, {"role": "assistant", "content": "5"}]
    assert row_formats.axolotl_unpaired(KTO) == {"id": "kto-verifier/q1/0.1", "completion": completion, "label": False}


def test_llamafactory_preference_is_a_conversation_up_to_the_question_and_a_turn_on_each_side() -> None:
    assert row_formats.llamafactory_preference(DPO) == {
        "id": "dpo-verifier/q1/0.1-0.2",
        "conversations": CONVERSATION,
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    }


def test_llamafactory_unpaired_is_a_conversation_with_a_tag() -> None:
    conversations = [*CONVERSATION, {"from": "gpt", "value": "5"}]
    expected = {"id": "kto-verifier/q1/0.1", "conversations": conversations, "kto_tag": False}
    assert row_formats.llamafactory_unpaired(KTO) == expected


@pytest.mark.parametrize(
    "roles", [[], ["system"], ["assistant"], ["user", "assistant"], ["user", "user", "user"], ["tool"]]
)
@pytest.mark.parametrize("write", [row_formats.alpaca, row_formats.sharegpt])
def test_a_prompt_in_which_the_two_do_not_take_turns_is_refused_by_name(
    roles: list[str], write: Callable[[SftRow], Record]
) -> None:
    with pytest.raises(
        VersionError, match=r"sft-verifier/q1/0.1: its prompt has turns .*; this format takes user, assistant"
    ):
        write(sft([said(role, "x") for role in roles], "4"))


@st.composite
def prompts(draw: st.DrawFn) -> list[MessageRow]:
    """Draw a prompt: a question, with or without system text and examples before it."""
    system = draw(st.lists(st.text(), max_size=1))
    examples = draw(st.lists(st.tuples(st.text(), st.text()), max_size=3))
    turns = [said(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*(said("system", text) for text in system), *turns, said("user", draw(st.text()))]


ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def of_messages(messages: Sequence[Record]) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in messages]


def of_sharegpt(turns: Sequence[Record]) -> list[tuple[str, str]]:
    return [(ROLES[each["from"]], each["value"]) for each in turns]


def of_alpaca(record: Record) -> list[tuple[str, str]]:
    """Read a record as LLaMA-Factory does; an empty system text is no message."""
    history = [
        (role, text) for pair in record["history"] for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    system = [("system", record["system"])] if record["system"] else []
    return [*system, *history, ("user", record["instruction"]), ("assistant", record["output"])]


def parsed(record: object) -> Record:
    """Write a record as a line of JSON and read it back."""
    assert isinstance(record, dict)
    line = json_line(record)
    assert b"\n" not in line
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


@given(prompts(), st.text())
def test_every_supervised_record_holds_all_that_was_seen_and_replied(prompt: list[MessageRow], text: str) -> None:
    row = sft(prompt, text)
    whole = of_messages([*prompt, said("assistant", text)])
    assert of_messages(parsed(row_formats.openai_supervised(row))["messages"]) == whole
    assert of_messages(parsed(row_formats.axolotl_supervised(row))["messages"]) == whole
    assert of_sharegpt(parsed(row_formats.sharegpt(row))["conversations"]) == whole
    assert of_alpaca(parsed(row_formats.alpaca(row))) == [turn for turn in whole if turn != ("system", "")]


@given(prompts(), st.text(), st.text())
def test_every_preference_record_holds_the_prompt_and_both_sides(
    prompt: list[MessageRow], chosen: str, rejected: str
) -> None:
    row, whole = dpo(prompt, chosen, rejected), of_messages(prompt)
    sides = [("assistant", chosen)], [("assistant", rejected)]
    openai, axolotl, llamafactory = (
        parsed(write(row))
        for write in (
            row_formats.openai_preference,
            row_formats.axolotl_preference,
            row_formats.llamafactory_preference,
        )
    )
    assert of_messages(openai["input"]["messages"]) == whole
    assert (of_messages(openai["preferred_output"]), of_messages(openai["non_preferred_output"])) == sides
    assert of_messages(axolotl["messages"]) == whole
    assert (of_messages([axolotl["chosen"]]), of_messages([axolotl["rejected"]])) == sides
    assert of_sharegpt(llamafactory["conversations"]) == whole
    assert (of_sharegpt([llamafactory["chosen"]]), of_sharegpt([llamafactory["rejected"]])) == sides


@given(prompts(), st.text(), st.booleans())
def test_every_unpaired_record_holds_the_conversation_and_its_label(
    prompt: list[MessageRow], text: str, label: bool
) -> None:
    row, whole = kto(prompt, text, label), of_messages([*prompt, said("assistant", text)])
    axolotl, llamafactory = parsed(row_formats.axolotl_unpaired(row)), parsed(row_formats.llamafactory_unpaired(row))
    assert (of_messages(axolotl["completion"]), axolotl["label"]) == (whole, label)
    assert (of_sharegpt(llamafactory["conversations"]), llamafactory["kto_tag"]) == (whole, label)
