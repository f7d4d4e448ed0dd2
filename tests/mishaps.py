"""Requests as the scripted provider receives them, the faults that it can answer with, and rules for when it does."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["answer", "reset", "cut", "hang", "drip", "no_choices", "filtered"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    number: int
    """Number of the request on this server, from 0."""
    attempt: int
    """Number of earlier requests with the same body: 0 at first, 1 at the first retry."""
    at: float
    """Time of arrival, in monotonic seconds."""
    port: int = 0
    """The client's port."""

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def prompt(self) -> str:
        """Text of all messages, joined by newlines."""
        return "\n".join(str(message["content"]) for message in self.body["messages"])

    @property
    def count(self) -> int:
        """Number of samples requested (`n`)."""
        return int(self.body.get("n") or 1)

    @property
    def seed(self) -> int | None:
        return self.body.get("seed")

    @property
    def conversation(self) -> str:
        """Model and messages as one text; with seed and sample it determines the reply."""
        return json.dumps([self.model, self.body["messages"]], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the server does instead of answering; made by the functions below."""

    action: Action = "answer"
    status: int = 200
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    """Raw body that replaces `text`."""


Faults = Callable[[Asked], Fault | None]


def refusal(status: int, message: str, code: str | None, kind: str = "invalid_request_error", **headers: str) -> Fault:
    """Return an error in OpenAI's shape."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Fault(status=status, text=json.dumps({"error": error}), headers=headers)


def rate_limited(retry_after_s: float | None = None) -> Fault:
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return refusal(429, "Rate limit reached for requests", "rate_limit_exceeded", "requests", **headers)


def quota_spent() -> Fault:
    """Refuse as OpenAI does when the account is out of money: with a 429."""
    return refusal(429, "You exceeded your current quota", "insufficient_quota", "insufficient_quota")


def payment_required() -> Fault:
    """Refuse as OpenRouter does when the account is out of money."""
    return refusal(402, "Insufficient credits. Add more.", None, "payment_required")


def wrong_key(echo: str = "sk-wrong") -> Fault:
    return refusal(401, f"Incorrect API key provided: {echo}.", "invalid_api_key")


def forbidden() -> Fault:
    return refusal(403, "Your account has no access to this model.", "permission_denied", "permission_error")


def unknown_model() -> Fault:
    return refusal(404, "The model does not exist.", "model_not_found")


def bad_request(message: str = "messages: must alternate") -> Fault:
    return refusal(400, message, None)


def context_overflow() -> Fault:
    message = "This model's maximum context length is 2048 tokens. However, your messages resulted in 9000 tokens."
    return refusal(400, message, "context_length_exceeded")


def prompt_filtered() -> Fault:
    return refusal(400, "Your request was rejected by our safety system.", "content_policy_violation")


def one_choice_only() -> Fault:
    return refusal(400, "Only n = 1 is supported.", None)


def server_error(status: int = 500) -> Fault:
    return refusal(status, "The server is having a bad day.", None, "server_error")


def not_json() -> Fault:
    """Answer 200 with a proxy's HTML page."""
    return Fault(text="<html><body>Gateway</body></html>")


def no_choices() -> Fault:
    return Fault("no_choices")


def reply_filtered() -> Fault:
    """Answer 200 with empty choices whose finish reason is `content_filter`."""
    return Fault("filtered")


def reset() -> Fault:
    """Drop the connection before answering."""
    return Fault("reset")


def cut_short() -> Fault:
    """Drop the connection in the middle of the body."""
    return Fault("cut")


def hang() -> Fault:
    """Never answer."""
    return Fault("hang")


def drip() -> Fault:
    """Answer one byte at a time, for ever."""
    return Fault("drip")


def when(applies: Callable[[Asked], bool], fault: Fault) -> Faults:
    """Return faults for the requests that `applies` selects."""
    return lambda asked: fault if applies(asked) else None


def at_first(times: int, fault: Fault) -> Faults:
    """Return faults that refuse every body's first `times` attempts."""
    return when(lambda asked: asked.attempt < times, fault)


def above_rate(per_second: float, fault: Fault, window_s: float = 1.0) -> Faults:
    """Return faults that refuse what exceeds `per_second` in a sliding window; a refused request does not count."""
    allowed: deque[float] = deque()

    def decide(asked: Asked) -> Fault | None:
        while allowed and allowed[0] <= asked.at - window_s:
            allowed.popleft()
        if len(allowed) >= per_second * window_s:
            return fault
        allowed.append(asked.at)
        return None

    return decide
