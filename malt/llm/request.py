"""CompletionRequest and Completion: a request to a model, its answer, and the key that joins them.

A request asks for several samples of one prompt at once; each sample has its own key.
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
"""Tokens reserved for a completion where the config sets no `max_tokens`."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class CompletionRequest:
    """`count` samples of one prompt: samples 0 … count-1 among their siblings.

    `address` is the parent's address in the question's tree, `""` for the root. The evaluator's is always empty, so
    that equal answers to one question are judged once.
    """

    role: Role
    model: ModelSpec
    messages: tuple[Message, ...]
    question_id: str
    address: str = ""
    count: int = 1
    schema: type[BaseModel] | None = None
    """Pydantic model of the wanted JSON reply, for providers that support a schema."""
    draw: int = 0
    """Number of earlier answers that were set aside. Part of the seed, so that a new answer differs; not of the key."""

    @cached_property
    def keys(self) -> list[str]:
        """Key of each sample, in order: a digest of all that shapes its text. The model's address is not part of it."""
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
        """Estimate the most tokens that `count` samples take: the prompt at 3 characters a token, full completions."""
        prompt = sum(len(message.content) for message in self.messages) // 3 + 16 * len(self.messages)
        return prompt + count * (self.model.max_tokens or DEFAULT_MAX_TOKENS)


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()


class FinishReason:
    """Finish reasons that the project tells apart; a provider's other reasons are kept as they are."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample, read from the provider's response. Token counts and cost are `None` where they are unknown."""

    key: str
    text: str
    reasoning: str | None
    finish_reason: str
    model: str
    """Provider's name of the model that answered."""
    prompt_tokens: int | None = None
    """This sample's share of the request's prompt tokens: siblings in one request are billed once."""
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_s: float = 0.0
    cached: bool = False
    """Whether it came from the store, not from a request of this run."""
    run: str = ""
    """Name of the run that requested it; empty where unknown."""


class Complete(Protocol):
    """Function that completes a request, passed to a tree's growth: from the store, or with a session behind it."""

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the request's samples in order.

        Raises `RequestFailed` (fails one branch) with the samples that did arrive, or `RunStopped` (ends the run).
        """


class RequestFailed(MaltError):  # noqa: N818 - named for what happened, as the run's report is
    """A request failed after its retries. `completed` holds the samples that did arrive, by sample number."""

    exit_code = 1

    def __init__(self, message: str, completed: Mapping[int, "Completion"] | None = None) -> None:
        super().__init__(message)
        self.completed: Mapping[int, Completion] = completed or {}
