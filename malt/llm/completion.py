"""CompletionRequest and Completion: what is asked of a model, what came back, and the key that joins them.

A request asks for several samples of one prompt at once; each sample has a key of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from malt.fingerprint import digest
from malt.spec import ModelSpec, Role


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
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

    @property
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


class Complete(Protocol):
    """How the trees ask: the same growth runs under Prefect, in a test, or over what the store holds."""

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the request's samples in order.

        Raises `RequestFailed` (one branch) with the samples that were had, or `RunStopped` (the run).
        """
        ...
