"""A scripted provider: an OpenAI-compatible server on loopback, for every test that calls a model.

    with ScriptedProvider() as provider:
        spec = ModelSpec(model="openai/m", api_base=provider.url)

Its replies come from a script, `(Asked, sample) -> str`; the default is `answering({})`. Its faults come from a
function, `(Asked) -> Fault | None`, which may be set while the server runs; `provider.faults = None` ends them.

Replies are deterministic: the same model, messages, seed and choice give the same text in any order. A request without
a seed continues with the samples after those of the last one with its model and messages, so a top-up gets new ones;
concurrent requests for one prompt get consecutive samples in their order of arrival.
"""

import asyncio
import hashlib
import json
import math
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.mishaps import Asked, Fault, Faults, one_choice_only, wrong_key
from tests.serving import Served


@dataclass(frozen=True, slots=True)
class Sent:
    """One answer that was sent completely, over a connection that was still open."""

    asked: Asked
    at: float
    """Time when the last byte was written, in monotonic seconds."""

    @property
    def id(self) -> str:
        """The answer's `id`, which the store keeps as well."""
        return answer_id(self.asked)


Script = Callable[[Asked, int], str]


def draw(asked: Asked, sample: int, topic: str = "") -> float:
    """Return a number in [0, 1) that depends on model, messages, seed, sample and topic alone."""
    identity = json.dumps([asked.conversation, asked.seed, sample, topic])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big") / 2**48


def answering(truths: Mapping[str, str], right: float = 0.5) -> Script:
    """Return a script whose replies end with `Final Answer: …` and are right with probability `right`.

    `truths` maps a part of a question's text to its answer; for a prompt with none of them the right answer is the
    first sum in it (`2 + 3`), else a digit. A request for JSON (from an evaluator) gets CONTRACT's four keys, with a
    random score.
    """

    def script(asked: Asked, sample: int) -> str:
        if "response_format" in asked.body:
            return judgement(draw(asked, sample))
        truth = next((answer for question, answer in truths.items() if question in asked.prompt), first_sum(asked))
        is_right = draw(asked, sample) < right
        answer = truth if is_right else f"{int(draw(asked, sample, 'wrong') * 9) + 1}00{len(truth)}"
        return f"Let me think about it in way {int(draw(asked, sample, 'way') * 1e6)}.\n\nFinal Answer: {answer}"

    return script


def first_sum(asked: Asked) -> str:
    """Return the value of the first `a + b` in the prompt, or one digit where there is none."""
    found = re.search(r"(\d+)\s*\+\s*(\d+)", asked.prompt)
    return str(int(found[1]) + int(found[2])) if found else str(len(asked.prompt) % 10)


def judgement(score: float) -> str:
    """Return an evaluator's reply as JSON."""
    verdict = "right" if score > 0.5 else "wrong"
    return json.dumps(
        {
            "correctness_score": round(score, 3),
            "reasoning_score": round(score, 3),
            "explanation": [f"The answer looks {verdict}."],
            "key_matches": [],
        }
    )


@dataclass
class ScriptedProvider(Served):
    """The server; a context manager. Its fields may be changed while it runs."""

    script: Script = field(default_factory=lambda: answering({}))
    faults: Faults | None = None
    siblings: Literal["honoured", "refused", "ignored"] = "honoured"
    """Response to `n` above 1: all choices, a 400, or a single choice."""
    reasoning: Callable[[Asked, int], str] | None = None
    """Text that is returned as `reasoning_content`, apart from the content."""
    truncated: Callable[[Asked], bool] = lambda _asked: False
    """Requests whose replies stop half-way, with finish reason `length`."""
    latency_s: float = 0.0
    holds: bool = False
    """Whether all requests wait; they are answered once this is false again."""
    holds_from: float = math.inf
    """Number of the first request that waits, with all later ones."""
    key: str | None = None
    """The only API key accepted; None accepts any."""
    count_tokens: Callable[[str], int] = field(default_factory=lambda: tokens_in)
    """Tokenizer by which it bills."""
    counts_tokens: bool = True
    """Whether answers contain `usage`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every answer, for example those that state rate limits."""
    cost_usd: float | None = None
    """Cost to report for each request, as OpenRouter does in `usage.cost`."""
    requests: list[Asked] = field(default_factory=list, init=False)
    """Every request, answered or refused, in order of arrival."""
    sent: list[Sent] = field(default_factory=list, init=False)
    """Every answer that was sent completely, in order."""
    completions: Counter[str] = field(default_factory=Counter, init=False)
    """Number of choices sent, by model."""
    max_in_flight: int = field(default=0, init=False)
    """Largest number of requests in flight at once."""
    _in_flight: int = field(default=0, init=False)
    _arrivals: Counter[str] = field(default_factory=Counter, init=False)
    _given: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def url(self) -> str:
        """Base URL of the API, ending in /v1."""
        return f"{self.address}/v1"

    @property
    def request_count(self) -> int:
        return len(self.requests)

    @property
    def completions_sent(self) -> int:
        return self.completions.total()

    def requests_to(self, model: str) -> list[Asked]:
        """Return the requests to one model; give each role a model of its own to count requests by role."""
        return [asked for asked in self.requests if asked.model == model]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**24)
        self._add_routes(app)
        return app

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = self._receive(await request.json(), dict(request.headers), port_of(request))
        self._in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            while self.holds or asked.number >= self.holds_from:  # noqa: ASYNC110 - another thread ends the wait
                await asyncio.sleep(0.02)
            fault = self._refuse(asked)
            if fault:
                return await self._misbehave(request, asked, fault)
            return await self._send(request, asked)
        finally:
            self._in_flight -= 1

    async def _send(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        response = web.json_response(self._answer(asked), headers=self.headers)
        await response.prepare(request)
        await response.write_eof()
        self.sent.append(Sent(asked, time.monotonic()))
        return response

    def _receive(self, body: dict[str, Any], headers: Mapping[str, str], port: int = 0) -> Asked:
        identity = json.dumps(body, sort_keys=True)
        asked = Asked(body, headers, len(self.requests), self._arrivals[identity], time.monotonic(), port)
        self._arrivals[identity] += 1
        self.requests.append(asked)
        return asked

    def _refuse(self, asked: Asked) -> Fault | None:
        if self.key is not None and asked.headers.get("Authorization") != f"Bearer {self.key}":
            return wrong_key(asked.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.siblings == "refused" and asked.count > 1:
            return one_choice_only()
        return self.faults(asked) if self.faults else None

    async def _misbehave(self, request: web.Request, asked: Asked, fault: Fault) -> web.StreamResponse:
        match fault.action:
            case "hang":
                await self._stopped.wait()
            case "drip":
                await self._drip(request)
            case "reset":
                drop(request)
            case "cut":
                await self._cut(request, asked)
            case "no_choices":
                return web.json_response(self._answer(asked) | {"choices": []})
            case "filtered":
                return web.json_response(filtered(self._answer(asked)))
        if fault.data is not None:
            return web.Response(status=fault.status, body=fault.data, headers=dict(fault.headers))
        return web.Response(status=fault.status, text=fault.text, headers=dict(fault.headers))

    async def _cut(self, request: web.Request, asked: Asked) -> None:
        body = json.dumps(self._answer(asked)).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        drop(request)

    async def _drip(self, request: web.Request) -> None:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while not self._stopped.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.02)

    def _answer(self, asked: Asked) -> dict[str, Any]:
        count = 1 if self.siblings == "ignored" else asked.count
        first = 0
        if asked.seed is None:
            first = self._given[asked.conversation]
            self._given[asked.conversation] += count
        choices = [self._choice(asked, index, first + index) for index in range(count)]
        self.completions[asked.model] += count
        return {
            "id": answer_id(asked),
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": asked.model,
            "choices": choices,
            **({"usage": self._usage(asked, choices)} if self.counts_tokens else {}),
        }

    def _choice(self, asked: Asked, index: int, sample: int) -> dict[str, Any]:
        text, is_cut = self.script(asked, sample), self.truncated(asked)
        message = {"role": "assistant", "content": text[: len(text) // 2] if is_cut else text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning(asked, sample)
        return {"index": index, "message": message, "finish_reason": "length" if is_cut else "stop"}

    def _usage(self, asked: Asked, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prompt = self.count_tokens(asked.prompt)
        completion = sum(self.count_tokens("".join(map(str, choice["message"].values()))) for choice in choices)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return usage if self.cost_usd is None else usage | {"cost": self.cost_usd}


def answer_id(asked: Asked) -> str:
    return f"chatcmpl-{asked.number}"


def tokens_in(text: str) -> int:
    """Count tokens as this server bills them: four characters each, rounded up."""
    return -(-len(text) // 4)


def filtered(answer: dict[str, Any]) -> dict[str, Any]:
    choices = [
        choice | {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
        for choice in answer["choices"]
    ]
    return answer | {"choices": choices}


def port_of(request: web.Request) -> int:
    """Return the client's port."""
    return 0 if request.transport is None else int(request.transport.get_extra_info("peername")[1])


def drop(request: web.Request) -> None:
    """Reset the connection, as a crashed server does."""
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
