"""CompletionRequest and Completion: what is asked of a model, what came back, and the key that joins them.

A request asks for several samples of one prompt at once; each sample has a key of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from malt.canonical_json import digest
from malt.config.roles import ModelSpec, Role
from malt.errors import MaltError

DEFAULT_MAX_TOKENS = 4096
"""Tokens reserved for a completion whose length the config leaves to the provider."""


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
    """Number of answers to it that were set aside: part of the seed, so that another one comes, not of the key."""

    @cached_property
    def keys(self) -> list[str]:
        """One key a sample, in order: made of everything that shaped it. Where a model is served did not."""
        prompt = digest(
            {
                "role": self.role.value,
                "model": self.model.identity,
                "sampling": self.model.sampling,
                "messages": [list(message) for message in self.messages],
                "schema": _json_schema(self.schema) if self.schema else None,
                "question": self.question_id,
                "address": self.address,
            }
        )
        return [f"{prompt}.{sample}" for sample in range(self.count)]

    def most_tokens(self, count: int) -> int:
        """Estimate from above what `count` samples take: the prompt at 3 characters a token, completions in full."""
        prompt = sum(len(message.content) for message in self.messages) // 3 + 16 * len(self.messages)
        return prompt + count * (self.model.max_tokens or DEFAULT_MAX_TOKENS)


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()


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
    """Whether it came from the store, not from a request of this run."""
    run: str = ""
    """The run that asked for it; empty where that is not known."""


class Complete(Protocol):
    """The trees' way to ask: the same growth runs under Prefect, in a test, or over the store."""

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the request's samples in order.

        Raises `RequestFailed` (one branch) with the samples that were had, or `RunStopped` (the run).
        """


class RequestFailed(MaltError):  # noqa: N818 - named for what happened, as the run's report is
    """A request stayed impossible after its retries. `completed` holds the siblings that were had, by sample number."""

    exit_code = 1

    def __init__(self, message: str, completed: Mapping[int, "Completion"] | None = None) -> None:
        super().__init__(message)
        self.completed: Mapping[int, Completion] = completed or {}
