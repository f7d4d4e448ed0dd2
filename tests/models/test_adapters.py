"""Adapters that cannot be verified, and servers with unusable responses; training/ has the tests with real adapters."""

import gzip
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from malt.cli.main import exit_code
from malt.models.version import Canary, Sample
from tests.models.conftest import Publish
from tests.serving import Served

TURNS = ({"role": "user", "content": "1+1?"},)
BEFORE, AFTER = {"2": -1.0, "3": -2.0}, {"2": -0.1, "3": -4.0}
MODELS = {"data": [{"id": "base"}, {"id": "other", "parent": "base"}]}


def listing(logprobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server's response with the log-probabilities of first tokens."""
    top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}


class Scripted(Served):
    """A server that answers each path with fixed bytes."""

    def __init__(
        self, bodies: Mapping[str, bytes], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.bodies, self.status, self.headers = bodies, status, headers or {}

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        key = request.headers.get("Authorization", "").encode()
        body = self.bodies.get(request.match_info["path"], b"{}").replace(b"KEY", key)
        return web.Response(status=self.status, body=body, headers=self.headers)


HOSTILE = {
    "no JSON": ({"models": b"<html>"}, "is no list of models"),
    "no list": ({"models": b'{"data": 1}'}, "is no list of models"),
    "a list of numbers": ({"models": b'{"data": [1]}'}, "is no list of models"),
    "nested": ({"models": b"[" * 100_000}, "is no list of models"),
    "no base": ({"models": b'{"data": [{"id": "a", "parent": "b"}]}'}, "lists no base model"),
    "endless": ({"models": b" " * (2**24 + 1)}, "its reply exceeds"),
    "NaN": (
        {"chat/completions": json.dumps(listing(dict.fromkeys(BEFORE, float("nan")))).encode()},
        "without log-prob",
    ),
    "text": ({"chat/completions": json.dumps(listing({"2": "nan"})).encode()}, "without log-prob"),
    "infinite": ({"chat/completions": json.dumps(listing({"2": float("-inf")})).encode()}, "without log-prob"),
    "huge": ({"chat/completions": json.dumps(listing({"2": 10**400})).encode()}, "without log-prob"),
    "none listed": ({"chat/completions": json.dumps(listing({})).encode()}, "without log-prob"),
    "objects": ({"chat/completions": b'{"choices": {"0": 1}}'}, "without log-prob"),
}


def with_canary(publish: Publish, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Publish a model version whose roles have a canary, the prompt by which a server's adapter is verified."""
    version = publish()
    canary = Canary(turns=TURNS, before=dict(before), after=dict(after))
    samples = (Sample(prompt="1+1?", before="3", after="2", canary=canary),)
    roles = {role: entry.model_copy(update={"samples": samples}) for role, entry in version.manifest.roles.items()}
    manifest = version.manifest.model_copy(update={"roles": roles}).model_dump(mode="python")
    (version.path / "manifest.json").write_text(json.dumps(manifest, default=str))
    return str(version.path)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_unusable_server_response_gives_a_one_line_error(
    publish: Publish, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies, told = HOSTILE[name]
    usual = {"models": json.dumps(MODELS).encode(), "chat/completions": json.dumps(listing(BEFORE)).encode()}
    with Scripted({**usual, **bodies}) as server:
        assert exit_code(["serve-adapters", with_canary(publish, BEFORE, AFTER), "--to", f"{server.address}/v1"]) == 2
    assert told in capsys.readouterr().err


def test_a_reply_of_few_bytes_that_unpacks_to_many_is_refused(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = {"models": gzip.compress(b" " * (2**24 + 1))}
    with Scripted(bomb, headers={"Content-Encoding": "gzip"}) as server:
        assert exit_code(["serve-adapters", with_canary(publish, BEFORE, AFTER), "--to", f"{server.address}/v1"]) == 2
    assert "its reply exceeds" in capsys.readouterr().err


def test_a_key_that_a_server_echoes_is_not_shown(
    publish: Publish, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_SERVER", "hush-hush-hush")
    command = ["serve-adapters", with_canary(publish, BEFORE, AFTER), "--key-env", "LORA_SERVER", "--to"]
    with Scripted({"models": b"you sent KEY"}, status=500) as server:
        assert exit_code([*command, f"{server.address}/v1"]) == 2
    said = capsys.readouterr().err
    assert "you sent" in said
    assert "hush" not in said


@pytest.mark.parametrize("known", [{}, {"2": float("nan")}, {"2": float("inf")}])
def test_a_model_with_invalid_log_probabilities_is_refused(
    publish: Publish, known: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    for before, after in ((known, AFTER), (BEFORE, known)):
        assert exit_code(["serve-adapters", with_canary(publish, before, after), "--to", "http://127.0.0.1:9/v1"]) == 2
        assert "has no log-probabilities of its generator" in capsys.readouterr().err


def test_a_model_that_cannot_be_proved_is_refused_before_the_server_is_asked(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["serve-adapters", str(publish().path), "--to", "http://127.0.0.1:9/v1"]) == 2
    assert "has no log-probabilities of its generator" in capsys.readouterr().err
    assert exit_code(["serve-adapters", str(publish().path), "--to", "http://me:secret@127.0.0.1:9/v1"]) == 2
    assert "secret" not in capsys.readouterr().err
