"""`malt serve`: the trio as one OpenAI-compatible model on loopback. Its answer is the refiner's.

Answers go through the store: a question that was evaluated or asked before gets the same chains again at no cost.
Sampling parameters of a request are ignored, since the config sets them; `n` is the number of chains.
"""

import asyncio
import hmac
import json
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from malt.config.base import first_problem
from malt.config.evaluate import EvaluateSpec
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import check_models
from malt.engine.run import new_run_name
from malt.engine.signals import on_signal
from malt.errors import AccountEmpty, ConfigError, EndpointDown, MaltError
from malt.evaluation.systems import Lineup, list_lineups, mute_absent, with_samples
from malt.files import MIB
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session, open_session, stop_sessions
from malt.llm.request import Completion
from malt.llm.response import split_parts
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, content_id, read_questions
from malt.trees.growth import TreeInputs
from malt.trees.pipeline import grow_tree
from malt.trees.tree import Address, Node, Tree

_MOST_CHAINS = 64
_WORDS_A_CHUNK = 8
_MOST_BYTES = 4 * MIB
"""Largest body of a request."""


class _Turn(BaseModel):
    """One message of a request; its content is a text, or a list of parts with texts."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: Any = ""


class _Asked(BaseModel):
    """Fields of a chat-completion request that are used."""

    model_config = ConfigDict(extra="ignore")

    messages: list[_Turn] = Field(min_length=1)
    n: int = Field(1, ge=1, le=_MOST_CHAINS)
    stream: bool = False

    @property
    def question(self) -> str:
        """The last user turn; without one, all turns."""
        turns = [split_parts(turn.content)[0] for turn in self.messages if turn.role == "user"]
        return (turns[-1] if turns else "\n\n".join(split_parts(turn.content)[0] for turn in self.messages)).strip()


@dataclass
class Trio:
    """System that answers, its prompts, and its session."""

    lineup: Lineup
    prompts: PromptSet
    known: Mapping[str, Question]
    """Questions of the config by their texts, with and without choices, so that their stored answers are found."""
    settings: Settings
    run: str
    session: Session

    @property
    def name(self) -> str:
        return f"malt/{self.lineup.system}"

    async def answer(self, text: str, chains: int) -> Tree:
        """Answer a question with so many independent chains."""
        spec = self.lineup.spec.model_copy(update={"roles": with_samples(self.lineup.spec.roles, chains)})
        unknown = Question(question_id=content_id(text, ""), question=text, ground_truth="")
        asked = self.known.get(text, unknown)
        if isinstance(self.session.stopped, EndpointDown | AccountEmpty):
            await self._renew_session()
        complete = mute_absent(self.lineup, make_completer(self.session, [asked.question_id], run=self.run))
        return await self.session.call(grow_tree(asked, TreeInputs(spec, self.prompts, complete)))

    async def _renew_session(self) -> None:
        """Continue in a new session with the old one's budget: the endpoint may be back by now."""
        stopped, run = self.run, new_run_name()
        session = open_session(self.settings, self.lineup.spec.limits, run)
        session.budget = self.session.budget
        self.run, self.session = run, session
        await asyncio.to_thread(stop_sessions, stopped)


def open_trio(spec: RunSpec, system: str | None, settings: Settings) -> Trio:
    """Open a system of `[evaluate]`, by default its first; without systems, the roles. Raises `ConfigError`."""
    evaluated = spec.model_copy(update={"evaluate": spec.evaluate or EvaluateSpec()})
    chains = [each for each in list_lineups(evaluated) if each.kind == "chain"]
    chosen = next((each for each in chains if system in (None, each.system)), None)
    if chosen is None:
        offered = ", ".join(dict.fromkeys(each.system for each in chains))
        raise ConfigError(f"--system {system}: no such system; there are: {offered}")
    check_models(chosen.spec)
    run = new_run_name()
    session = open_session(settings, chosen.spec.limits, run)
    return Trio(chosen, load_prompts(spec.prompts), _read_known(spec), settings, run, session)


def _read_known(spec: RunSpec) -> dict[str, Question]:
    """Return the config's evaluation questions by their texts; a text without choices that two share is left out."""
    held_out = spec.evaluate and spec.evaluate.questions
    known = read_questions(held_out, "evaluate.questions") if held_out else []
    shared = Counter(question.stem for question in known)
    alone = {question.stem: question for question in known if shared[question.stem] == 1}
    return alone | {question.question: question for question in known}


def new_key() -> str:
    return f"malt-{secrets.token_urlsafe(24)}"


def application(trio: Trio, key: str) -> Starlette:
    """Return the web application: `/v1/models` and `/v1/chat/completions`, for clients with the key."""

    async def models(request: Request) -> Response:
        if not _is_allowed(request, key):
            return _refuse(401, "wrong or missing key; send the one that `malt serve` printed")
        return JSONResponse({"object": "list", "data": [{"id": trio.name, "object": "model", "owned_by": "malt"}]})

    async def complete(request: Request) -> Response:
        if not _is_allowed(request, key):
            return _refuse(401, "wrong or missing key; send the one that `malt serve` printed")
        try:
            asked = _Asked.model_validate_json(await _read_body(request))
        except ValidationError as error:
            return _refuse(400, first_problem(error, "body"))
        return await _respond(trio, asked)

    return Starlette(routes=[
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/chat/completions", complete, methods=["POST"]),
    ])  # fmt: skip


async def _read_body(request: Request) -> bytes:
    """Read a request's body; empty if the client disconnects. Raises `HTTPException` if it is too large."""
    body = bytearray()
    with suppress(ClientDisconnect):
        async for piece in request.stream():
            body += piece
            if len(body) > _MOST_BYTES:
                raise HTTPException(413, f"a request may have {_MOST_BYTES:,} bytes")
        return bytes(body)
    return b""


def _is_allowed(request: Request, key: str) -> bool:
    return hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {key}".encode())


def _refuse(status: int, message: str) -> JSONResponse:
    """Return an error in OpenAI's format."""
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


async def _respond(trio: Trio, asked: _Asked) -> Response:
    if not asked.question:
        return _refuse(400, "messages: the last user turn is empty")
    try:
        tree = await trio.answer(asked.question, asked.n)
    except MaltError as error:
        return _refuse(503, str(error))
    if tree.failures:
        return _refuse(502, tree.failures[0].reason)
    body = _write_completion(trio, tree, asked.n)
    if not asked.stream:
        return JSONResponse(body)
    return StreamingResponse(_stream_events(body), media_type="text/event-stream")


def _write_completion(trio: Trio, tree: Tree, chains: int) -> dict[str, Any]:
    """Return a tree of independent chains as a chat completion; usage counts all roles together."""
    found = [_find_chain(tree, chain, trio.lineup) for chain in range(chains)]
    completions = [node.completion for chain in found for node in chain]
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": trio.name,
        "choices": [_write_choice(number, chain[-1]) for number, chain in enumerate(found)],
        "usage": _add_usage(completions),
        "malt": {"question_id": tree.question.question_id, "chains": [_write_metadata(chain) for chain in found]},
    }


def _find_chain(tree: Tree, chain: int, lineup: Lineup) -> list[Node]:
    path = Address((chain, 0, 0)).path
    return [tree.nodes[address] for address in path if address.role in lineup.roles]


def _write_choice(number: int, last: Node) -> dict[str, Any]:
    message = {"role": "assistant", "content": last.text}
    return {"index": number, "message": message, "finish_reason": last.completion.finish_reason}


def _write_metadata(chain: Sequence[Node]) -> dict[str, Any]:
    from malt.datasets.stats.diagnostics import verdict_among

    verdict = {True: "correct", False: "wrong", None: None}[verdict_among(chain)]
    return {**{node.role.value: node.text for node in chain}, "verdict": verdict}


def _add_usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Add up the tokens of all roles; completions whose tokens the provider did not report count as 0."""
    prompt = sum(completion.prompt_tokens or 0 for completion in completions)
    completion = sum(each.completion_tokens or 0 for each in completions)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _stream_events(body: Mapping[str, Any]) -> AsyncIterator[str]:
    """Yield a finished completion as server-sent events: the last role's text in pieces, then usage and chains."""
    head = {name: body[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in body["choices"]:
        words = choice["message"]["content"].split(" ")
        for start in range(0, len(words), _WORDS_A_CHUNK):
            piece = " ".join(words[start : start + _WORDS_A_CHUNK])
            delta = {"content": piece if start == 0 else f" {piece}"}
            yield _write_event({**head, "choices": [{"index": choice["index"], "delta": delta, "finish_reason": None}]})
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        yield _write_event({**head, "choices": [end]})
    yield _write_event({**head, "choices": [], "usage": body["usage"], "malt": body["malt"]})
    yield "data: [DONE]\n\n"


def _write_event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def claim_port(port: int) -> socket.socket:
    """Listen on loopback. Raises `ConfigError` where that is refused: another process has the port, mostly."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ConfigError(f"--port {port}: cannot listen on 127.0.0.1 ({reason}); give another port") from error


def serve(trio: Trio, key: str, claimed: socket.socket) -> None:
    """Serve on a claimed port until the process gets a signal to stop."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(application(trio, key), log_level="warning"))
    with on_signal(lambda: setattr(server, "should_exit", True)), claimed:
        server.run(sockets=[claimed])
