"""Destinations of prompts and keys: a provider's own address and no other; and the size limit of replies."""

import gzip
import resource
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType

import pytest

from malt.config.roles import ModelSpec, Role
from malt.errors import ConfigError, MaltError
from malt.llm.faults import Unusable
from malt.llm.provider import call as llm
from malt.llm.provider.routing import is_own_address
from malt.llm.request import CompletionRequest, Message
from tests.providers import ScriptedProvider

KEY = "sk-the-users-own-key-0123456789"
NOTHING: Mapping[str, str] = MappingProxyType({})


@pytest.fixture(autouse=True)
async def connections() -> AsyncIterator[None]:
    yield
    await llm.close()


@contextmanager
def answering(status: int, headers: Mapping[str, str] = NOTHING, body: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """Serve the same answer to every request; yield the address and the list of received requests."""
    heard: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body_text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            heard.append(f"{self.path}\n{self.headers}\n{body_text}")
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client may stop reading early
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", heard
        finally:
            server.shutdown()


def request(model: ModelSpec) -> CompletionRequest:
    return CompletionRequest(Role.GENERATOR, model, (Message("user", "What is 2 + 3?"),), "q", "0", 3)


OWN_KEYS = {
    "openai/m": "OPENAI_API_KEY",
    "openai/o3-mini": "OPENAI_API_KEY",
    "anthropic/m": "ANTHROPIC_API_KEY",
    "groq/m": "GROQ_API_KEY",
    "mistral/m": "MISTRAL_API_KEY",
    "gemini/m": "GEMINI_API_KEY",
    "deepseek/m": "DEEPSEEK_API_KEY",
    "together_ai/m": "TOGETHERAI_API_KEY",
    "openrouter/a/m": "OPENROUTER_API_KEY",
    "xai/m": "XAI_API_KEY",
}


@pytest.mark.parametrize("model", OWN_KEYS)
async def test_a_providers_key_goes_to_no_other_address(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_KEYS[model], KEY)
    with answering(400) as (address, heard):
        asked = ModelSpec(model=model, api_base=address, temperature=1)
        llm.check(asked)
        with pytest.raises(MaltError):
            await llm.send(request(asked), 0, 1)
    assert heard
    assert KEY not in "".join(heard)


async def test_a_providers_key_goes_where_its_variable_says(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    await llm.send(request(ModelSpec(model="openai/at-home", api_base=provider.url)), 0, 1)
    assert provider.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "api_base", "is_own"),
    [
        ("openai/m", "https://api.openai.com/v1", True),
        ("openai/m", "https://eu.api.openai.com/v1", True),
        ("openai/m", "https://api.openai.com.example.org/v1", False),
        ("openai/m", "https://example.org/api.openai.com", False),
        ("openai/m", "https://notapi.openai.com/v1", False),
        ("groq/m", "https://api.groq.com/openai/v1", True),
        ("groq/m", "https://api.openai.com/v1", False),
        ("azure/m", "https://mine.openai.azure.com", True),
        ("hosted_vllm/m", "http://127.0.0.1:8000/v1", True),
    ],
)
def test_an_address_is_a_providers_own_by_its_host(model: str, api_base: str, is_own: bool) -> None:
    assert is_own_address(ModelSpec(model=model, api_base=api_base), model.partition("/")[0]) is is_own


async def test_a_server_that_wants_a_key_which_is_not_sent_there_says_so(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider.key = "another"
    with pytest.raises(ConfigError, match="asks for a key"):
        await llm.send(request(ModelSpec(model="openai/m", api_base=provider.url)), 0, 1)


async def test_an_endpoint_is_asked_through_the_proxy_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(400) as (proxy, heard):
        monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
        asked = ModelSpec(model="openai/m", api_base="http://models.invalid/v1", api_key_env="TEST_KEY")
        with pytest.raises(MaltError):
            await llm.send(request(asked), 0, 1)
    assert [each.partition("\n")[0] for each in heard] == ["http://models.invalid/v1/chat/completions"]


async def test_a_password_in_a_netrc_file_does_not_stand_in_the_way_of_a_key(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    await llm.send(request(ModelSpec(model="openai/m", api_base=provider.url, api_key_env="TEST_KEY")), 0, 1)
    assert provider.requests[0].headers["Authorization"] == "Bearer test-key-4711"


# providers that LiteLLM asks itself

DIRECT = ("openai/o3-mini", "anthropic/m", "mistral/m", "gemini/m")


@cache
def bomb_of_300_mb() -> bytes:
    return gzip.compress(b"[" + b" " * 300_000_000, 1)


@pytest.mark.parametrize("model", DIRECT)
async def test_a_reply_that_unpacks_to_gigabytes_fails_its_own_request(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    bomb = bomb_of_300_mb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering(200, {"Content-Encoding": "gzip"}, bomb) as (address, heard):
        wanted = request(ModelSpec(model=model, api_base=address, api_key_env="TEST_KEY", temperature=1))
        with pytest.raises(Unusable, match="sent more than 100 MB"):
            await llm.send(wanted, 0, 1)
    assert len(heard) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 350_000  # KiB


@pytest.mark.parametrize("model", DIRECT)
async def test_prompts_and_key_follow_no_redirect_to_another_host(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with answering(400) as (elsewhere, heard):
        away = {"Location": elsewhere.replace("127.0.0.1", "localhost") + "/chat/completions"}
        with answering(307, away) as (address, asked), pytest.raises(MaltError):
            await llm.send(
                request(ModelSpec(model=model, api_base=address, api_key_env="TEST_KEY", temperature=1)), 0, 1
            )
    assert asked
    assert heard == []
