"""Providers' responses: split into one JSON text per choice for the store, and read from it as Completions.

Every response can be read: missing fields are empty or None.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from pydantic import JsonValue
from pydantic_core import from_json

from malt.llm.request import Completion, FinishReason

_MOST_TOKENS = 2**31
"""Bound on a plausible token count; a higher one is ignored as a provider's mistake."""

_FINISH_REASONS = {
    FinishReason.STOP: ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "done"),
    FinishReason.LENGTH: ("length", "max_tokens", "model_length", "model_context_window_exceeded", "compaction"),
    FinishReason.CONTENT_FILTER: (
        *("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii", "language"),
        *("sensitive", "guardrail_intervened", "content_filtered", "error_toxic"),
    ),
}
_MEANINGS = {word: reason for reason, words in _FINISH_REASONS.items() for word in words}
_FAULTS = frozenset(
    {"error", "abort", "aborted", "cancelled", "insufficient_system_resource", "network_error", "timeout"}
)
"""Finish reasons of a text that the provider broke off; it is requested again."""

_TAG = re.compile(
    r"<(?P<xml>/?)(?:seed:)?think(?:ing)?>|\[(?P<bracket>/?)THINK\]|◁(?P<kimi>/?)think▷"
    r"|<\|(?P<open>begin_of_thought|START_THINKING)\|>|<\|(?:end_of_thought|END_THINKING)\|>",
    re.IGNORECASE,
)
"""Tags around reasoning, which servers without a reasoning parser leave in the content."""
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<text>.*?)(?:<\|(?:start|end|return|call)\|>|(?=<\|channel\|>)|\Z)",
    re.DOTALL,
)
"""One message in the harmony format."""
_BARE_CHANNELS = re.compile(r"analysis(?P<thought>.*)assistantfinal(?P<text>.*)", re.DOTALL)
"""Harmony format whose special tokens were dropped in decoding."""
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, which not every database can hold, and lone surrogates, which UTF-8 cannot encode."""


def parse_body(text: bytes) -> object:
    """Parse a JSON reply; characters that cannot be stored become U+FFFD.

    Raises `ValueError` for invalid JSON, and `RecursionError` for JSON that is nested too deeply.
    """
    if b"\\u0000" not in text:
        with suppress(ValueError):  # raised for lone surrogates too, which `json.loads` accepts
            return from_json(text)
    return _clean(json.loads(text))


def clean_text(text: str) -> str:
    """Replace NUL and lone surrogates with U+FFFD."""
    return _UNWRITABLE.sub("\ufffd", text)


def _clean(value: object) -> object:
    match value:
        case str():
            return clean_text(value)
        case list():
            return [_clean(each) for each in value]
        case dict():
            return {clean_text(name): _clean(each) for name, each in value.items()}
    return value


def find_fault(choice: object) -> str | None:
    """Return the reason why a choice is not an answer, such as one that the provider broke off; else None."""
    if not isinstance(choice, dict):
        return "an empty choice"
    if error := choice.get("error"):
        return read_error(error) or "an error"
    reason = _native_reason(choice)
    return f"finish_reason {reason!r}" if reason.lower() in _FAULTS else None


def read_error(error: object) -> str:
    """Return the text of an error object, in the shapes that providers use."""
    while isinstance(error, dict):
        error = next((error[name] for name in ("error", "message", "detail", "msg") if error.get(name)), "")
    if isinstance(error, list):
        return "; ".join(filter(None, map(read_error, error)))
    return error if isinstance(error, str) else ""


def split_response(body: Mapping[str, JsonValue], count: int) -> list[str]:
    """Split one raw chat-completion response into one JSON text per choice, at most `count` of them.

    Each keeps the rest of the body, and the number of siblings that share its usage. Nothing is interpreted.
    """
    choices = body.get("choices")
    taken = choices[:count] if isinstance(choices, list) else []
    around = {name: value for name, value in body.items() if name != "choices"}
    return [
        json.dumps({**around, "choices": [choice], "siblings": len(taken), "position": position})
        for position, choice in enumerate(taken)
    ]


def read_response(
    response: str, key: str, *, cost_usd: float | None, latency_s: float, cached: bool, run: str = ""
) -> Completion:
    body: Any = parse_body(response.encode())
    choice = as_object(body["choices"][0])
    message = as_object(choice.get("message"))
    text, reasoning = _read_message(message)
    usage = body["usage"] if has_usage(body.get("usage")) else {}
    share = (body["position"], body["siblings"])
    return Completion(
        key=key,
        text=text,
        reasoning=reasoning or None,
        finish_reason=_read_finish_reason(choice, message, text),
        model=_text_of(body.get("model")),
        prompt_tokens=share_tokens(usage.get("prompt_tokens"), *share),
        completion_tokens=read_token_count(
            choice.get("completion_tokens", share_tokens(usage.get("completion_tokens"), *share))
        ),
        cost_usd=cost_usd,
        latency_s=latency_s,
        cached=cached,
        run=run,
    )


def split_reasoning(content: str) -> tuple[str, str]:
    """Separate a model's answer from its reasoning in `<think>`, `[THINK]`, harmony channels and similar. A block that
    is not closed extends to the end; one that is closed but not opened began in the prompt.
    """
    if messages := list(_CHANNEL.finditer(content)):
        texts = [[each["text"] for each in messages if (each["name"] == "final") is wanted] for wanted in (True, False)]
    elif bare := _BARE_CHANNELS.fullmatch(content):
        texts = [[bare["text"]], [bare["thought"]]]
    elif _TAG.search(content):
        texts = _split_tags(content)
    else:
        return content, ""
    answer, thought = ("".join(parts) for parts in texts)
    return answer.lstrip(), thought.strip()


def _split_tags(content: str) -> list[list[str]]:
    answer: list[str] = []
    thoughts: list[str] = []
    start, is_open = 0, False
    for tag in _TAG.finditer(content):
        piece, start = content[start : tag.start()], tag.end()
        opens = "" in (tag["xml"], tag["bracket"], tag["kimi"]) or tag["open"] is not None
        if is_open:
            thoughts.append(piece)
        elif opens:
            answer.append(piece)
        else:
            thoughts, answer = [*thoughts, *answer, piece], []
        is_open = opens
    (thoughts if is_open else answer).append(content[start:])
    return [answer, thoughts]


def _read_message(message: Mapping[str, Any]) -> tuple[str, str]:
    content, parts = split_parts(message.get("content"))
    text, thought = split_reasoning(content)
    field = _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning"))
    return text, "\n".join(filter(None, (field, parts, thought)))


def split_parts(content: object) -> tuple[str, str]:
    """Return the text and the reasoning in a content field, which is a string or a list of parts."""
    if not isinstance(content, list):
        return _text_of(content), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            is_thought = str(part.get("type")).startswith(("thinking", "reasoning", "redacted"))
            inner = next((part[name] for name in ("text", "thinking", "reasoning", "content") if part.get(name)), "")
            (thoughts if is_thought else texts).append("".join(split_parts(inner)))
    return "".join(texts), "".join(thoughts)


def _read_finish_reason(choice: Mapping[str, Any], message: Mapping[str, Any], text: str) -> str:
    if message.get("refusal") and not text:
        return FinishReason.CONTENT_FILTER
    reason = _native_reason(choice)
    return _MEANINGS.get(reason.lower(), reason) or FinishReason.STOP


def _native_reason(choice: Mapping[str, Any]) -> str:
    """Return the provider's own finish reason where a gateway passes on one that we know, else the usual field."""
    fields = choice.get("provider_specific_fields")
    own = choice.get("native_finish_reason") or (fields.get("native_finish_reason") if isinstance(fields, dict) else "")
    is_known = _text_of(own).lower() in _MEANINGS.keys() | _FAULTS
    return _text_of(own if is_known else choice.get("finish_reason"))


def as_object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def share_tokens(total: object, position: int, siblings: int) -> int | None:
    """Return one sibling's share of a request's token count; the shares add up to the whole."""
    counted = read_token_count(total)
    return None if counted is None else counted // siblings + (position < counted % siblings)


def has_usage(usage: object) -> TypeGuard[dict[str, JsonValue]]:
    """Whether a usage was reported: LiteLLM fills a missing one with zeros, and every prompt has tokens."""
    return isinstance(usage, dict) and bool(read_token_count(usage.get("prompt_tokens")))


def read_token_count(value: object) -> int | None:
    """Return a provider's token count, or None where it is missing or implausible."""
    return value if isinstance(value, int) and 0 <= value < _MOST_TOKENS else None
