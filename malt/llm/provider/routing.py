"""LiteLLM itself: imported late and once, kept silent, asked how it reaches a model and what it knows of prices.

The only import of it. provider.py sends through it; meaning.py reads its errors.
"""

import asyncio
import logging
import os
import threading
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import NamedTuple

from malt.config.spec import ModelSpec
from malt.errors import ConfigError
from malt.llm.provider import embedded
from malt.loading import loading

COMPATIBLE = "hosted_vllm"
"""LiteLLM's name of a provider that speaks OpenAI's protocol and is reached without OpenAI's SDK."""


class Prices(NamedTuple):
    """US dollars for one token."""

    prompt: float
    completion: float


@dataclass
class Way:
    """How LiteLLM reaches a model, what that takes, and what this process has learned of it."""

    name: str
    api_base: str | None
    supported: frozenset[str]
    """OpenAI parameters that LiteLLM can pass on there."""
    takes_schema: bool
    gave_siblings: bool = False
    took_batches: bool = False
    """Whether a call about batches was answered there."""

    @property
    def is_compatible(self) -> bool:
        """Whether the endpoint speaks OpenAI's own protocol, so that compatible.py can ask it."""
        return self.name.startswith(f"{COMPATIBLE}/")


@cache
def library() -> ModuleType:
    """Import LiteLLM: seconds, so never before it is needed, and silent, so that stdout stays the command's own."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network
    with loading():
        import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    module: ModuleType = litellm
    return module


_ways: dict[tuple[str, str | None, str | None], Way] = {}
_finding = threading.Lock()


async def way_to(model: ModelSpec) -> Way:
    """Find the way to a model, once; slow at first: it may import LiteLLM and start the embedded model."""
    where = (model.model, model.api_base, model.weights)
    return _ways[where] if where in _ways else await asyncio.to_thread(_found_once, model, where)


def _found_once(model: ModelSpec, where: tuple[str, str | None, str | None]) -> Way:
    with _finding:
        if where not in _ways:
            _ways[where] = _find_way(model)
        return _ways[where]


def _find_way(model: ModelSpec) -> Way:
    provider = COMPATIBLE if embedded.is_embedded(model.model) else provider_of(model)
    supported = supported_by(model, provider)
    name, api_base = model.model, model.api_base
    if embedded.is_embedded(model.model):
        name, api_base = f"{COMPATIBLE}/{model.model}", embedded.endpoint(model.model, model.weights)
    elif provider == "openai" and api_base and not library().supports_reasoning(model.model):
        # the same protocol without the OpenAI SDK (compatible.py); OpenAI's reasoning models keep it, for it renames
        # their parameters
        name = f"{COMPATIBLE}/{model.model.removeprefix('openai/')}"
    listed_price(name)
    _silence_price_search(name)
    return Way(name, api_base, supported, takes_schema="response_format" in supported)


def listed_price(name: str, *, batched: bool = False) -> Prices | None:
    """Return what LiteLLM's list says of a model, asked directly or in a batch; None where it is not on it."""
    listed = _listed_prices(name)
    return None if listed is None else listed[batched]


@cache
def _listed_prices(name: str) -> tuple[Prices, Prices] | None:
    """Return the direct prices and those in a batch: half of them where the list has none of its own."""
    try:
        info = library().get_model_info(name)
    except Exception:  # LiteLLM has no narrower class for "not listed" across its versions
        return None
    direct = Prices(info["input_cost_per_token"] or 0.0, info["output_cost_per_token"] or 0.0)
    own = (info.get("input_cost_per_token_batches"), info.get("output_cost_per_token_batches"))
    return direct, Prices(*(usual / 2 if price is None else price for price, usual in zip(own, direct, strict=True)))


def _silence_price_search(name: str) -> None:
    """Register an unlisted model at 0: LiteLLM looks for a price at every reply, and not finding it costs 0.5 ms.

    The 0 is never read: `listed_price` remembers what was listed before.
    """
    if listed_price(name) is None:
        free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "chat"}
        library().register_model({name: {**free, "litellm_provider": name.partition("/")[0]}})


def provider_of(model: ModelSpec) -> str:
    """Return LiteLLM's name of the provider. Raises `ConfigError` where it knows none."""
    try:
        return str(library().get_llm_provider(model.model, api_base=model.api_base)[1])
    except Exception:
        known = "openai/…, anthropic/…, groq/…, ollama_chat/…, hosted_vllm/…, embedded"
        raise ConfigError(
            f"model {model.model!r} names no provider that LiteLLM knows; write it as one of {known}"
        ) from None


def supported_by(model: ModelSpec, provider: str) -> frozenset[str]:
    """Return the OpenAI parameters that LiteLLM can pass on to a model."""
    name = model.model.removeprefix(f"{provider}/")
    return frozenset(library().get_supported_openai_params(model=name, custom_llm_provider=provider) or ())
