"""The only import of LiteLLM, made when first needed; the route that it takes to a model, and its price list.

call.py sends requests through it and errors.py reads its errors. The size of its HTTP replies is bounded here.
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
"""LiteLLM's name for a provider that speaks OpenAI's protocol and is called without OpenAI's SDK."""


class Prices(NamedTuple):
    """US dollars for one token."""

    prompt: float
    completion: float


@dataclass
class Route:
    """Route to a model: LiteLLM's name for it, its address, and the features that it is known to support."""

    name: str
    api_base: str | None
    supported: frozenset[str]
    """OpenAI parameters that LiteLLM can pass on to the model."""
    takes_schema: bool
    gets_own_key: bool = True
    """Whether the provider's default key may be sent to this address."""
    has_siblings: bool = False
    """Whether one request is known to bring several samples (`n`)."""
    has_batches: bool = False
    """Whether the address has answered a call of the batch API."""

    @property
    def is_compatible(self) -> bool:
        """Whether the endpoint speaks OpenAI's protocol, so that openai_compatible.py can send its requests."""
        return self.name.startswith(f"{COMPATIBLE}/")


@cache
def import_litellm() -> ModuleType:
    """Import LiteLLM, and silence it. The import takes seconds, so call this only where LiteLLM is needed."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import downloads the price list
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
"""Bytes of the longest reply that is read, after decompression."""
_UNPACKED = ("content-encoding", "content-length", "transfer-encoding")


def _bound_clients(handler: Any) -> None:  # noqa: ANN401 - LiteLLM is not typed
    """Bound the replies of all clients that LiteLLM makes from now on, by wrapping the maker of their transports."""
    make = handler.create_async_transport

    @wraps(make)
    def make_bounded(*arguments: object, **named: object) -> _BoundedTransport:
        return _BoundedTransport(make(*arguments, **named) or httpx.AsyncHTTPTransport())

    handler.create_async_transport = staticmethod(make_bounded)


class _BoundedTransport(httpx.AsyncBaseTransport):
    """Transport that reads replies up to a size, and drops redirects to other hosts or out of TLS."""

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
    """Read a reply up to `most` decompressed bytes: a few bytes of gzip may hold gigabytes. Raises `Unusable`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > most:
            raise Unusable(f"sent more than {most / 1e6:.0f} MB, which no answer of that length takes")
    return bytes(body)


_routes: dict[tuple[str, str | None, str | None], Route] = {}
_finding = threading.Lock()


async def find_route(model: ModelSpec) -> Route:
    """Return the route to a model. The first call is slow: it may import LiteLLM and start the embedded model."""
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
        # avoid the OpenAI SDK, except for OpenAI's reasoning models: their route renames parameters
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
"""Hosts of providers whose address LiteLLM does not expose."""


def is_own_address(model: ModelSpec, provider: str) -> bool:
    """Whether `api_base` is the provider's own, so that its key may go there; True where no own address is known."""
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
    """Return the direct and the batch prices of a model (half the direct ones where no others are listed), or None.

    Only the list's own fields count: LiteLLM makes up an entry at 0 for a name that resembles a model it knows
    (`openai/gpt-5.9`), and reads an entry with tiered prices as 0.
    """
    listed = _find_listed(name)
    prompt, completion = listed.get("input_cost_per_token"), listed.get("output_cost_per_token")
    if prompt is None or completion is None:
        return None
    direct = Prices(prompt, completion)
    own = (listed.get("input_cost_per_token_batches"), listed.get("output_cost_per_token_batches"))
    return direct, Prices(*(usual / 2 if price is None else price for price, usual in zip(own, direct, strict=True)))


def _find_listed(name: str) -> dict[str, Any]:
    litellm = import_litellm()
    with suppress(Exception):  # across its versions, LiteLLM has no narrower class for "not listed"
        return dict(litellm.model_cost.get(litellm.get_model_info(name)["key"], {}))
    return {}


def _silence_price_search(name: str) -> None:
    """Register an unlisted model at price 0: LiteLLM looks up a price at every reply, and a failed search costs 0.5 ms.

    The 0 is never used: `look_up_prices` has cached the result from before.
    """
    if look_up_prices(name) is None:
        free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "chat"}
        import_litellm().register_model({name: {**free, "litellm_provider": name.partition("/")[0]}})


def find_provider(model: ModelSpec) -> str:
    """Return LiteLLM's name for a model's provider. Raises `ConfigError` where it knows none."""
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
