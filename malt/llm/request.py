"""CompletionRequest and Completion: what is asked of a model, what came back, and the key that joins them.

A request asks for several samples of one prompt at once; each sample has a key of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel, JsonValue
from pydantic_core import from_json

from malt.canonical_json import digest
from malt.config.spec import ModelSpec, Role
from malt.errors import MaltError

DEFAULT_MAX_TOKENS = 4096
"""What is reserved for a completion whose length the config leaves to the provider."""

_MOST_TOKENS = 2**31
"""A count from here on is a provider's mistake."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class CompletionRequest:
    """`count` samples of one prompt: samples 0 … count-1 among their siblings.

    `address` is the parent's address in the question's tree (`""` for the root); the evaluator has none, so that
    equal answers to one question are judged once.
    """

    role: Role
    model: ModelSpec
    messages: tuple[Message, ...]
    question_id: str
    address: str = ""
    count: int = 1
    schema: type[BaseModel] | None = None
    """Pydantic model of the wanted JSON reply, for providers that can hold to one."""
    draw: int = 0
    """How many answers to it were set aside: part of the seed, so that another one comes, and not of the key."""

    @cached_property
    def keys(self) -> list[str]:
        """One key a sample, in order: made of everything that shaped it. Where the model is served did not."""
        prompt = digest(
            {
                "role": self.role.value,
                "model": self.model.model,
                "sampling": self.model.sampling,
                "messages": [list(message) for message in self.messages],
                "schema": self.schema.model_json_schema() if self.schema else None,
                "question": self.question_id,
                "address": self.address,
            }
        )
        return [f"{prompt}.{sample}" for sample in range(self.count)]

    def most_tokens(self, count: int) -> int:
        """Estimate from above what `count` samples take: the prompt at 3 characters a token, completions in full."""
        prompt = sum(len(message.content) for message in self.messages) // 3 + 16 * len(self.messages)
        return prompt + count * (self.model.max_tokens or DEFAULT_MAX_TOKENS)


class FinishReason:
    """The finish reasons this project tells apart; providers' other words are kept as they are."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample, read from what the provider sent. Token counts and cost are `None` where they are not known."""

    key: str
    text: str
    reasoning: str | None
    finish_reason: str
    model: str
    """The model that answered, as the provider names it."""
    prompt_tokens: int | None = None
    """This sample's share of the request's prompt tokens: siblings asked together are billed once."""
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float = 0.0
    cached: bool = False
    """It came from the store, not from a request of this run."""
    run: str = ""
    """The run that asked for it; empty where that is not known."""


class Complete(Protocol):
    """How the trees ask: the same growth runs under Prefect, in a test, or over what the store holds."""

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the request's samples in order.

        Raises `RequestFailed` (one branch) with the samples that were had, or `RunStopped` (the run).
        """
        ...


def split_response(body: Mapping[str, JsonValue], count: int) -> list[str]:
    """Cut one raw chat-completion response into one JSON text a choice, at most `count` of them.

    Each keeps all of the body around its choice, and notes how many siblings share the usage. Nothing is interpreted.
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
    """Read one stored response. Whatever the provider sent has a reading: what is missing is empty or None."""
    body = _read_json(response)
    choice = body["choices"][0] or {}
    message = choice.get("message") or {}
    text, reasoning = _split_reasoning(_read_text(message.get("content")), _read_text(message.get("reasoning_content")))
    usage = body["usage"] if has_usage(body.get("usage")) else {}
    share = (body["position"], body["siblings"])
    return Completion(
        key=key,
        text=text,
        reasoning=reasoning or None,
        finish_reason=_read_text(choice.get("finish_reason")) or FinishReason.STOP,
        model=_read_text(body.get("model")),
        prompt_tokens=share_tokens(usage.get("prompt_tokens"), *share),
        completion_tokens=choice.get("completion_tokens", share_tokens(usage.get("completion_tokens"), *share)),
        cost_usd=cost_usd,
        latency_s=latency_s,
        cached=cached,
        run=run,
    )


def _read_json(text: str) -> Any:  # noqa: ANN401 - whatever a provider sent
    """Parse JSON. The quick parser refuses half characters, which Python's takes."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _read_text(content: object) -> str:
    """Return the text of a message field: a string, a list of parts with text, or nothing."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _split_reasoning(content: str, reasoning: str) -> tuple[str, str]:
    """Take `<think>` text out of the content, where servers without a reasoning parser leave it."""
    if reasoning or not content.lstrip().startswith("<think>"):
        return content, reasoning
    thought, closed, answer = content.lstrip().removeprefix("<think>").partition("</think>")
    return (answer.lstrip(), thought.strip()) if closed else ("", thought.strip())


def share_tokens(total: object, position: int, siblings: int) -> int | None:
    """Divide a request's token count among its siblings; the shares add up to the whole."""
    counted = read_token_count(total)
    return None if counted is None else counted // siblings + (position < counted % siblings)


def has_usage(usage: object) -> TypeGuard[dict[str, JsonValue]]:
    """Whether a usage says anything: LiteLLM fills a missing one with zeros, and no prompt has none."""
    return isinstance(usage, dict) and bool(read_token_count(usage.get("prompt_tokens")))


def read_token_count(value: object) -> int | None:
    """Return a provider's count, or None where it cannot be one."""
    return value if isinstance(value, int) and 0 <= value < _MOST_TOKENS else None


class RequestFailed(MaltError):  # noqa: N818 - named for what happened, as the run's report is
    """A request stayed impossible after its retries. `completed` holds the siblings that were had, by sample number."""

    exit_code = 1

    def __init__(self, message: str, completed: Mapping[int, "Completion"] | None = None) -> None:
        super().__init__(message)
        self.completed: Mapping[int, Completion] = completed or {}
