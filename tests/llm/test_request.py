"""Request keys, made of everything that shapes a sample; and the reading of any response."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from malt.config.roles import ModelSpec, Role
from malt.grading.judge_reply import JudgeReply
from malt.llm.request import CompletionRequest, FinishReason, Message
from malt.llm.response import find_fault, read_response, share_tokens, split_reasoning, split_response

FIELDS = (
    *(
        "message",
        "content",
        "reasoning_content",
        "reasoning",
        "refusal",
        "finish_reason",
        "native_finish_reason",
        "usage",
    ),
    *("completion_tokens", "prompt_tokens", "error", "text", "type", "thinking", "model", "provider_specific_fields"),
)

REQUEST = CompletionRequest(
    role=Role.VERIFIER,
    model=ModelSpec(model="openai/m", temperature=0.3, seed=7),
    messages=(Message("system", "Check."), Message("user", "2 + 2 = 5")),
    question_id="q1",
    address="0",
    count=3,
)


@pytest.mark.parametrize(
    "changed",
    [
        replace(REQUEST, role=Role.REFINER),
        replace(REQUEST, messages=(Message("system", "Check!"), Message("user", "2 + 2 = 5"))),
        replace(REQUEST, messages=(Message("user", "Check."), Message("user", "2 + 2 = 5"))),
        replace(REQUEST, question_id="q2"),
        replace(REQUEST, address="1"),
        replace(REQUEST, schema=JudgeReply),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"model": "openai/n"})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"temperature": 0.4})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"temperature": None})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"max_tokens": 99})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"top_p": 0.9})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"seed": 8})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"extra": {"reasoning_effort": "low"}})),
    ],
)
def test_a_setting_that_shapes_a_sample_changes_every_key(changed: CompletionRequest) -> None:
    assert not set(changed.keys) & set(REQUEST.keys)


@pytest.mark.parametrize(
    "changed",
    [
        replace(REQUEST, model=REQUEST.model.model_copy(update={"api_base": "http://elsewhere/v1"})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"api_key_env": "OTHER_KEY"})),
        replace(REQUEST, model=REQUEST.model.model_copy(update={"timeout_s": 1.0})),
    ],
)
def test_address_and_patience_change_no_key(changed: CompletionRequest) -> None:
    assert changed.keys == REQUEST.keys


@given(st.integers(1, 20), st.integers(1, 20))
def test_more_siblings_keep_the_keys_of_fewer(fewer: int, more: int) -> None:
    few, many = sorted((fewer, more))
    assert replace(REQUEST, count=many).keys[:few] == replace(REQUEST, count=few).keys


def test_siblings_have_different_keys() -> None:
    assert len(set(REQUEST.keys)) == REQUEST.count


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_siblings_share_a_requests_tokens_to_the_last_one(total: int, siblings: int) -> None:
    assert sum(share_tokens(total, position, siblings) or 0 for position in range(siblings)) == total


def body(*choices: JsonValue) -> dict[str, JsonValue]:
    return {"model": "m-2026", "choices": list(choices), "usage": {"prompt_tokens": 10, "completion_tokens": 7}}


def read(response: str) -> tuple[str, str | None, str]:
    completion = read_response(response, "key", cost_usd=None, latency_s=0.1, cached=False)
    return completion.text, completion.reasoning, completion.finish_reason


def test_a_response_is_cut_into_one_raw_text_a_choice() -> None:
    choices: list[JsonValue] = [
        {"index": i, "message": {"content": f"text {i}", "odd": [1]}, "finish_reason": "stop"} for i in range(3)
    ]
    cut = split_response(body(*choices), 3)
    assert [json.loads(one)["choices"] for one in cut] == [[choice] for choice in choices]
    assert [read(one)[0] for one in cut] == ["text 0", "text 1", "text 2"]


def test_choices_beyond_those_asked_for_are_left_out() -> None:
    assert len(split_response(body({}, {}, {}), 2)) == 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "7", "reasoning_content": "3 + 4"}, ("7", "3 + 4", "stop")),
        ({"content": "<think>3 + 4</think>\n\n7"}, ("7", "3 + 4", "stop")),
        ({"content": "<think>3 + 4 and then"}, ("", "3 + 4 and then", "stop")),
        ({"content": None, "reasoning_content": "3 + 4"}, ("", "3 + 4", "stop")),
        ({"content": [{"type": "text", "text": "se"}, {"type": "text", "text": "ven"}]}, ("seven", None, "stop")),
        ({}, ("", None, "stop")),
    ],
)
def test_reasoning_is_kept_apart_from_the_text(message: JsonValue, expected: tuple[str, str | None, str]) -> None:
    assert read(split_response(body({"message": message}), 1)[0]) == expected


def test_a_finish_reason_is_kept_as_the_provider_says_it() -> None:
    cut = split_response(body({"message": {"content": "half"}, "finish_reason": "length"}), 1)
    assert read(cut[0])[2] == FinishReason.LENGTH


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 0}, (10, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None)),
        ({"prompt_tokens": -10, "completion_tokens": -7}, (None, None)),
        ({"prompt_tokens": 10, "completion_tokens": 10**30}, (10, None)),
        ({"prompt_tokens": "10"}, (None, None)),
        (None, (None, None)),
        ([1], (None, None)),
    ],
)
def test_tokens_that_nobody_counted_are_unknown(usage: JsonValue, expected: tuple[int | None, int | None]) -> None:
    [cut] = split_response({**body({}), "usage": usage}, 1)
    completion = read_response(cut, "key", cost_usd=None, latency_s=0.1, cached=False)
    assert (completion.prompt_tokens, completion.completion_tokens) == expected


def test_names_that_are_no_text_are_read_as_missing() -> None:
    [cut] = split_response({"model": 5, "choices": [{"finish_reason": {"a": 1}}]}, 1)
    completion = read_response(cut, "key", cost_usd=None, latency_s=0.1, cached=False)
    assert (completion.model, completion.finish_reason) == ("", "stop")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_every_response_of_a_provider_can_be_read(around: dict[str, JsonValue], choice: dict[str, JsonValue]) -> None:
    [cut] = split_response({**around, "choices": [choice]}, 1)
    completion = read_response(cut, "key", cost_usd=None, latency_s=0.1, cached=False)
    find_fault(choice)
    assert isinstance(completion.text, str)
    assert isinstance(completion.finish_reason, str)
    assert completion.completion_tokens is None or completion.completion_tokens >= 0
    completion.text.encode()


@given(st.text(), st.sampled_from(["<think>", "[THINK]", "<seed:think>", "◁think▷"]))
def test_reasoning_is_never_in_the_text(thought: str, opening: str) -> None:
    assert "7 is what I hide" not in split_reasoning(f"{opening}7 is what I hide{thought}")[0]
