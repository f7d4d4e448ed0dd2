"""LiteLLM itself: imported late and once, kept silent, asked how it reaches a model and what it knows of prices.

The only import of it; call.py sends through it, errors.py reads its errors. Its own HTTP clients are bounded here.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from malt.config.roles import ModelSpec
from malt.errors import ConfigError
from malt.llm.faults import Unusable
from malt.llm.provider import embedded
from malt.processes import paused_gc

COMPATIBLE = "hosted_vllm"
"""LiteLLM's name of a provider that speaks OpenAI's protocol and is reached without OpenAI's SDK."""


class Prices(NamedTuple):
    """US dollars for one token."""

    prompt: float
    completion: float


@dataclass
class Route:
    """How LiteLLM reaches a model, what that takes, and what this process has learned of it."""

    name: str
    api_base: str | None
    supported: frozenset[str]
    """OpenAI parameters that LiteLLM can pass on there."""
    takes_schema: bool
    gets_own_key: bool = True
    """Whether the provider's own key may go there."""
    has_siblings: bool = False
    has_batches: bool = False
    """Whether a call about batches was answered there."""

    @property
    def is_compatible(self) -> bool:
        """Whether the endpoint speaks OpenAI's own protocol, so that openai_compatible.py can ask it."""
        return self.name.startswith(f"{COMPATIBLE}/")


@cache
def import_litellm() -> ModuleType:
    """Import LiteLLM: seconds, so never before it is needed, and silent, so that stdout stays the command's own."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network
    with paused_gc():
        import litellm
        from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    _bound_clients(AsyncHTTPHandler)
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    module: ModuleType = litellm
    return module


MOST_BYTES = 100_000_000
"""The longest reply that is read, once unpacked."""
_UNPACKED = ("content-encoding", "content-length", "transfer-encoding")


def _bound_clients(handler: Any) -> None:  # noqa: ANN401 - LiteLLM is not typed
    """Have every client that LiteLLM makes from now on bounded; all get their transport from this one method."""
    make = handler.create_async_transport

    @wraps(make)
    def make_bounded(*arguments: object, **named: object) -> _BoundedTransport:
        return _BoundedTransport(make(*arguments, **named) or httpx.AsyncHTTPTransport())

    handler.create_async_transport = staticmethod(make_bounded)


class _BoundedTransport(httpx.AsyncBaseTransport):
    """Reads what another transport brings up to a size, and drops redirects to other hosts or out of TLS."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await self._inner.handle_async_request(request)
        try:
            body = await read_bounded(reply.aiter_bytes())
        finally:
            await reply.aclose()
        target = request.url.join(reply.headers.get("location", ""))
        leads_away = target.host != request.url.host or target.scheme < request.url.scheme
        dropped = {*_UNPACKED, *(["location"] if leads_away else [])}
        headers = [(name, value) for name, value in reply.headers.multi_items() if name.lower() not in dropped]
        return httpx.Response(reply.status_code, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def read_bounded(pieces: AsyncIterable[bytes], most: int = MOST_BYTES) -> bytes:
    """Read a reply piece by piece as it is unpacked: a few bytes of gzip may stand for gigabytes. Raises `Unusable`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > most:
            raise Unusable(f"sent more than {most / 1e6:.0f} MB, which no answer of that length takes")
    return bytes(body)


_routes: dict[tuple[str, str | None, str | None], Route] = {}
_finding = threading.Lock()


async def find_route(model: ModelSpec) -> Route:
    """Find the way to a model, once; slow at first: it may import LiteLLM and start the embedded model."""
    where = (model.model, model.api_base, model.weights)
    return _routes[where] if where in _routes else await asyncio.to_thread(_find_once, model)


def forget_route(model: ModelSpec) -> None:
    _routes.pop((model.model, model.api_base, model.weights), None)


def _find_once(model: ModelSpec) -> Route:
    where = (model.model, model.api_base, model.weights)
    with _finding:
        if where not in _routes:
            _routes[where] = _make_route(model)
        return _routes[where]


def _make_route(model: ModelSpec) -> Route:
    provider = COMPATIBLE if embedded.is_embedded(model.model) else find_provider(model)
    supported = list_supported(model, provider)
    name, api_base = model.model, model.api_base
    if embedded.is_embedded(model.model):
        name, api_base = f"{COMPATIBLE}/{model.model}", embedded.start_endpoint(model.model, model.weights)
    elif provider == "openai" and api_base and not import_litellm().supports_reasoning(model.model):
        # the same protocol without the OpenAI SDK; OpenAI's reasoning models keep it, for it renames their parameters
        name = f"{COMPATIBLE}/{model.model.removeprefix('openai/')}"
    _silence_price_search(name)
    gets_own_key, has_siblings = is_own_address(model, provider), embedded.is_embedded(model.model)
    return Route(name, api_base, supported, "response_format" in supported, gets_own_key, has_siblings)


_ADDRESSES = {
    "anthropic": "api.anthropic.com",
    "cohere": "api.cohere.com",
    "cohere_chat": "api.cohere.com",
    "gemini": "generativelanguage.googleapis.com",
    "huggingface": "router.huggingface.co",
    "openai": "api.openai.com",
    "openrouter": "openrouter.ai",
    "replicate": "api.replicate.com",
    "text-completion-openai": "api.openai.com",
}
"""Hosts of providers whose address LiteLLM keeps to itself."""


def is_own_address(model: ModelSpec, provider: str) -> bool:
    """Say whether a model's `api_base` is where its provider's key belongs; where it has no place of its own, it is."""
    if model.api_base is None or embedded.is_embedded(model.model):
        return True
    named = (os.environ.get(f"{provider.upper()}_{name}") for name in ("API_BASE", "BASE_URL"))
    listed = import_litellm().get_llm_provider(model.model)[3]
    own = {urlsplit(address).hostname for address in (*named, listed) if address} | {_ADDRESSES.get(provider)}
    hosts = [host for host in own if host]
    wanted = urlsplit(model.api_base).hostname or ""
    return not hosts or any(wanted == host or wanted.endswith(f".{host}") for host in hosts)


@cache
def look_up_prices(name: str) -> tuple[Prices, Prices] | None:
    """Return the direct prices and those in a batch (half of them where the list has none of its own), or None.

    LiteLLM makes up an entry at 0 for what is only called like a model it knows (`openai/gpt-5.9`), and reads one
    with prices by tier as 0; so what counts is what its list says itself.
    """
    listed = _find_listed(name)
    given, said = listed.get("input_cost_per_token"), listed.get("output_cost_per_token")
    if given is None or said is None:
        return None
    direct = Prices(given, said)
    own = (listed.get("input_cost_per_token_batches"), listed.get("output_cost_per_token_batches"))
    return direct, Prices(*(usual / 2 if price is None else price for price, usual in zip(own, direct, strict=True)))


def _find_listed(name: str) -> dict[str, Any]:
    litellm = import_litellm()
    with suppress(Exception):  # LiteLLM has no narrower class for "not listed" across its versions
        return dict(litellm.model_cost.get(litellm.get_model_info(name)["key"], {}))
    return {}


def _silence_price_search(name: str) -> None:
    """Register an unlisted model at 0: LiteLLM looks for a price at every reply, and not finding it costs 0.5 ms.

    The 0 is never read: `look_up_prices` remembers what was listed before.
    """
    if look_up_prices(name) is None:
        free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "chat"}
        import_litellm().register_model({name: {**free, "litellm_provider": name.partition("/")[0]}})


def find_provider(model: ModelSpec) -> str:
    """Return LiteLLM's name of the provider. Raises `ConfigError` where it knows none."""
    try:
        return str(import_litellm().get_llm_provider(model.model, api_base=model.api_base)[1])
    except Exception:
        known = "openai/…, anthropic/…, groq/…, ollama_chat/…, hosted_vllm/…, embedded"
        raise ConfigError(
            f"model {model.model!r} names no provider that LiteLLM knows; write it as one of {known}"
        ) from None


def list_supported(model: ModelSpec, provider: str) -> frozenset[str]:
    """Return the OpenAI parameters that LiteLLM can pass on to a model."""
    name = model.model.removeprefix(f"{provider}/")
    return frozenset(import_litellm().get_supported_openai_params(model=name, custom_llm_provider=provider) or ())
