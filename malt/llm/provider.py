"""One HTTP request to one model through LiteLLM, the only import of it, and what its errors mean here.

When to ask, how often and how fast is limits.py's; reading what came back is completion.py's.
"""

import asyncio
import copy
import gc
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, JsonValue

from malt.errors import ConfigError, MaltError, RunStopped
from malt.fingerprint import digest
from malt.llm import embedded
from malt.llm.completion import CompletionRequest, is_counted, token_count
from malt.llm.limits import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable
from malt.spec import ModelSpec

if TYPE_CHECKING:
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

OWN_KEYS = frozenset(
    {"model", "messages", "n", "stream", "temperature", "max_tokens", "max_completion_tokens", "top_p", "seed"}
    | {"timeout", "response_format", "fallbacks", "api_base", "base_url", "api_key", "num_retries", "max_retries"}
    | {"drop_params", "mock_response", "custom_llm_provider"}
)
"""What `extra` may not set: the config has a key of its own for it, or it is not the user's to set."""


SHORTEST_KEY = 6
"""Characters; what is shorter is a placeholder for a server that wants no key, and would be found within words."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One response, raw: it is stored before anything reads it."""

    response: dict[str, JsonValue]
    """The whole chat-completion body as LiteLLM gives it back."""
    latency_s: float
    cost_usd: float | None
    """Of the whole request: as the provider reported, else by LiteLLM's prices, else None; 0 for the embedded model."""

    @property
    def total_tokens(self) -> int | None:
        """What the provider counted, prompt and completions together; None where it did not."""
        usage = self.response.get("usage")
        return token_count(usage.get("total_tokens")) if is_counted(usage) else None


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


async def send(request: CompletionRequest, first: int, count: int) -> Reply:
    """Ask for samples first … first+count-1 in one HTTP request, without retries; the provider may return fewer.

    Raises `RateLimited`, `Unavailable`, `Rejected` or `NoSiblings` for limits.py and its callers to act on;
    `ConfigError` for a wrong key, model or parameter and `RunStopped` for an empty account: those end the run.
    """
    model = request.model
    way = _way(model) if _where(model) in _ways else await asyncio.to_thread(_way, model)
    arguments = _arguments(request, way, first, count)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(model.timeout_s):  # LiteLLM's own timeout does not end a reply that drips
            answer = await _litellm().acompletion(**arguments)
    except Exception as error:
        # `from None`: what LiteLLM raises, and what that came from, may quote the key
        raise _translated(error, request, way, count) from None
    latency_s = time.perf_counter() - started
    response = answer.model_dump(mode="json", warnings=False)
    if not response.get("choices"):
        raise Unavailable(f"{_place(model)} answered without choices", perhaps_billed=True)
    if embedded.is_embedded(model.model) and way.api_base:
        with suppress(OSError):  # the answer is here; a count that cannot be had is an unknown one
            await asyncio.to_thread(_count_choices, way.api_base, response)
    way.gave_siblings = way.gave_siblings or len(response["choices"]) > 1
    return Reply(response, latency_s, _cost(model, getattr(answer, "usage", None), response.get("usage")))


def check(model: ModelSpec, *, capped: bool = False) -> None:
    """Find what is wrong with a declaration without asking the model; `capped`: its cost must be known beforehand.

    Raises `ConfigError`.
    """
    if owned := sorted(OWN_KEYS & model.extra.keys()):
        raise ConfigError(
            f"{model.model}: extra may not set {', '.join(owned)}; use the config's own key if it has one"
        )
    _key(model)
    if embedded.is_embedded(model.model):
        embedded.check(model.model)
        return
    provider = _provider(model)
    _check_key(model, provider)
    _check_sampling(model, provider)
    if provider == "hosted_vllm" and not (model.api_base or os.environ.get("HOSTED_VLLM_API_BASE")):
        raise ConfigError(f'{model.model} needs an address: set api_base = "http://…/v1"')
    if capped and price(model) is None:
        raise ConfigError(f"limits.max_cost_usd is set, but the price of {model.model} is not known; remove the cap")
    if capped and model.max_tokens is None:
        raise ConfigError(f"limits.max_cost_usd is set, but {model.model} has no max_tokens to reckon with; set it")


def takes_siblings(model: ModelSpec) -> bool:
    """Whether several samples can be asked for in one request (`n`)."""
    return embedded.is_embedded(model.model) or "n" in _supported(model, _provider(model))


def price(model: ModelSpec) -> Prices | None:
    """Return what LiteLLM's list says a token costs; None where it does not know the model."""
    return Prices(0.0, 0.0) if embedded.is_embedded(model.model) else _listed_price(model.model)


def warm_up() -> None:
    """Import LiteLLM now, while there is something else to wait for; the first request would take seconds longer."""
    _litellm()


async def close() -> None:
    """Close LiteLLM's connections; those of the running loop, so call it there."""
    if _litellm.cache_info().currsize:
        await _litellm().close_litellm_async_clients()
    if _client.cache_info().currsize:
        await _client().close()


@cache
def _litellm() -> ModuleType:
    """Import LiteLLM: seconds, so never before it is needed, and silent, so that stdout stays the command's own."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.drop_params = False
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    gc.freeze()  # its 100,000s of objects live as long as the process; each full collection would walk them
    module: ModuleType = litellm
    return module


@cache
def _client() -> "AsyncHTTPHandler":
    """Return LiteLLM's HTTP handler, except that it does not send a request again behind our back: it may be billed."""
    _litellm()
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    class SendsOnce(AsyncHTTPHandler):  # type: ignore[misc]  # LiteLLM is not typed
        async def single_connection_post_request(self, **_: object) -> None:
            """Called where a connection broke, to send again."""
            raise  # the error of the connection, which the caller is handling

    return SendsOnce()


_ways: dict[tuple[str, str | None], Way] = {}
_finding = threading.Lock()


def _where(model: ModelSpec) -> tuple[str, str | None]:
    return model.model, model.api_base


def _way(model: ModelSpec) -> Way:
    """Find the way to a model, once; slow at first: it may import LiteLLM and start the embedded model."""
    with _finding:
        if _where(model) not in _ways:
            _ways[_where(model)] = _find_way(model)
        return _ways[_where(model)]


def _find_way(model: ModelSpec) -> Way:
    provider = "hosted_vllm" if embedded.is_embedded(model.model) else _provider(model)
    supported = _supported(model, provider)
    name, api_base = model.model, model.api_base
    if embedded.is_embedded(model.model):
        name, api_base = f"hosted_vllm/{model.model}", embedded.endpoint(model.model)
    elif provider == "openai" and api_base and not _litellm().supports_reasoning(model.model):
        # the same protocol through LiteLLM's own HTTP handler: half the CPU of the OpenAI SDK, and no slower above
        # 100 in flight; OpenAI's reasoning models keep theirs, which renames their parameters
        name = f"hosted_vllm/{model.model.removeprefix('openai/')}"
    _listed_price(name)
    _silence_price_search(name)
    return Way(name, api_base, supported, takes_schema="response_format" in supported)


@cache
def _listed_price(name: str) -> Prices | None:
    try:
        info = _litellm().get_model_info(name)
    except Exception:  # LiteLLM has no narrower class for "not listed" across its versions
        return None
    return Prices(info["input_cost_per_token"] or 0.0, info["output_cost_per_token"] or 0.0)


def _silence_price_search(name: str) -> None:
    """Register an unlisted model at 0: LiteLLM looks for a price at every reply, and not finding it costs 0.5 ms.

    The 0 is never read: `_listed_price` remembers what was listed before.
    """
    if _listed_price(name) is None:
        free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "chat"}
        _litellm().register_model({name: {**free, "litellm_provider": name.partition("/")[0]}})


def _provider(model: ModelSpec) -> str:
    """Return LiteLLM's name of the provider. Raises `ConfigError` where it knows none."""
    try:
        return str(_litellm().get_llm_provider(model.model, api_base=model.api_base)[1])
    except Exception:
        known = "openai/…, anthropic/…, groq/…, ollama_chat/…, hosted_vllm/…, embedded"
        raise ConfigError(
            f"model {model.model!r} names no provider that LiteLLM knows; write it as one of {known}"
        ) from None


def _supported(model: ModelSpec, provider: str) -> frozenset[str]:
    name = model.model.removeprefix(f"{provider}/")
    return frozenset(_litellm().get_supported_openai_params(model=name, custom_llm_provider=provider) or ())


def _key(model: ModelSpec) -> str | None:
    """Read the key from the environment, now. Raises `ConfigError` where the named variable is not set."""
    if model.api_key_env is None:
        return None
    if not (key := os.environ.get(model.api_key_env)):
        raise ConfigError(f"{model.model}: api_key_env names {model.api_key_env}, which is not set; export it")
    return key


def _check_key(model: ModelSpec, provider: str) -> None:
    """Complain of a missing key. Credentials that are not keys (AWS profiles, say) are left to the provider."""
    if model.api_key_env or model.api_key_block or (provider == "openai" and model.api_base):
        return
    missing = _litellm().validate_environment(model.model)["missing_keys"]
    if missing and all(name.endswith("API_KEY") for name in missing):
        raise ConfigError(
            f"{model.model} needs a key: export {' or '.join(missing)}, or name its variable in api_key_env"
        )


def _check_sampling(model: ModelSpec, provider: str) -> None:
    try:
        _litellm().get_optional_params(
            model=model.model.removeprefix(f"{provider}/"), custom_llm_provider=provider, **_sampling(model)
        )
    except Exception as error:
        raise ConfigError(f"{model.model}: {_reason(error)}") from None


def _sampling(model: ModelSpec) -> dict[str, JsonValue]:
    wanted = {"temperature": model.temperature, "max_tokens": model.max_tokens, "top_p": model.top_p}
    return {name: value for name, value in wanted.items() if value is not None}


def _arguments(request: CompletionRequest, way: Way, first: int, count: int) -> dict[str, object]:
    """Return what LiteLLM is called with. Raises `NoSiblings` where the provider has no `n`."""
    model = request.model
    arguments: dict[str, object] = {
        "model": way.name,
        "messages": [message._asdict() for message in request.messages],
        "api_base": way.api_base,
        "api_key": _key(model) or _usual_key(model, way),
        "timeout": model.timeout_s + 1,
        "max_retries": 0,
        "num_retries": 0,
        "no-log": True,
        **_sampling(model),
        **copy.deepcopy(model.extra),  # LiteLLM writes into `metadata`, and these are part of every key
    }
    if way.name.startswith("hosted_vllm/"):
        arguments["client"] = _client()
    if count > 1:
        if "n" not in way.supported:
            raise NoSiblings(f"{model.model} takes no `n`")
        arguments["n"] = min(count, embedded.SLOTS) if embedded.is_embedded(model.model) else count
    if model.seed is not None and "seed" in way.supported:
        arguments["seed"] = _seed(request, first)
    if request.schema is not None and way.takes_schema:
        arguments["response_format"] = _response_format(request.schema)
    return arguments


def _usual_key(model: ModelSpec, way: Way) -> str | None:
    """Return the key for an OpenAI-compatible server without `api_key_env`; many take any. Else LiteLLM finds it."""
    if model.api_key_block:
        raise ConfigError(f"{model.model}: api_key_block is read by the flows alone; use api_key_env here")
    if embedded.is_embedded(model.model):
        return "none"
    is_openai = (
        way.api_base and not model.model.startswith("hosted_vllm/") and way.name.startswith(("hosted_", "openai/"))
    )
    return os.environ.get("OPENAI_API_KEY", "none") if is_openai else None


def _seed(request: CompletionRequest, first: int) -> int:
    """Return 31 bits that depend on the base seed, the node, the first sample asked for and how often it was before."""
    identity: dict[str, JsonValue] = {
        "seed": request.model.seed,
        "question_id": request.question_id,
        "address": request.address,
        "first": first,
        **({"draw": request.draw} if request.draw else {}),
    }
    return int(digest(identity)[:8], 16) & 0x7FFFFFFF


@cache
def _response_format(schema: type[BaseModel]) -> object:
    return _litellm().utils.type_to_response_format_param(schema)


def _count_choices(api_base: str, response: Mapping[str, JsonValue]) -> None:
    """Note each choice's `completion_tokens` in it: the embedded server's usage covers the first choice alone."""
    choices = [choice for choice in embedded.as_list(response.get("choices")) if isinstance(choice, dict)]
    for choice, tokens in zip(choices, embedded.count_choices(api_base, response), strict=True):
        choice["completion_tokens"] = tokens


def _cost(model: ModelSpec, usage: object, counted: object) -> float | None:
    """Return the cost of a request; `counted` is its usage as plain values."""
    if embedded.is_embedded(model.model):
        return 0.0
    reported = getattr(usage, "cost", None)
    if isinstance(reported, int | float) and math.isfinite(reported) and reported >= 0:
        return float(reported)
    if not is_counted(counted) or price(model) is None:
        return None
    return float(sum(_litellm().cost_per_token(model=model.model, usage_object=usage)))


def _place(model: ModelSpec) -> str:
    return f"{model.model} at {model.api_base}" if model.api_base else model.model


def _translated(error: Exception, request: CompletionRequest, way: Way, count: int) -> MaltError:
    """Say what an error of LiteLLM means to the run."""
    model, status = request.model, getattr(error, "status_code", None)
    if isinstance(error, TimeoutError | _litellm().Timeout):
        return Unavailable(f"{_place(model)} gave no answer within {model.timeout_s:g} s", perhaps_billed=True)
    if isinstance(error, _litellm().UnsupportedParamsError):
        return ConfigError(f"{model.model}: {_reason(error)}")
    reason = f"{_place(model)}: {_scrubbed(_reason(error), model)}"
    if ended := _ends_the_run(error, model, reason):
        return ended
    if status == 429:
        too_large = "request too large" in str(error).lower()  # larger than a minute's tokens: waiting never helps
        return Rejected(reason) if too_large else RateLimited(reason, _retry_after_s(error))
    if isinstance(status, int) and 400 <= status < 500 and status not in {408, 409, 425}:
        return _refused(error, request, way, count, reason)
    return Unreachable(reason) if _never_connected(error) else Unavailable(reason, perhaps_billed=_was_cut_off(error))


def _ends_the_run(error: Exception, model: ModelSpec, reason: str) -> MaltError | None:
    """Return the error that no other request of this run would escape either."""
    text = str(error).lower() + str(getattr(error, "body", "")).lower()
    match getattr(error, "status_code", None):
        case 401:
            named = f"in {model.api_key_env}" if model.api_key_env else "in the environment"
            return ConfigError(f"{_place(model)} refused the key {named} (401); set one that is valid there")
        case 402:
            return RunStopped(f"{reason} (402); add credit there and run again")
        case 400 | 429 if "insufficient_quota" in text or "credit balance is too low" in text:
            return RunStopped(f"{reason} (the account is out of credit); add some there and run again")
        case 403 if "flagged" not in text and "moderation" not in text:
            return ConfigError(f"{reason} (403); the key may not use this model: use another key or model")
        case 404:
            return ConfigError(f"{reason} (404); check the model's name and api_base")
    return None


def _refused(error: Exception, request: CompletionRequest, way: Way, count: int, reason: str) -> MaltError:
    """Tell a bad prompt from a provider that cannot do what was asked beside it."""
    litellm, text = _litellm(), str(error)
    if isinstance(error, litellm.ContextWindowExceededError | litellm.ContentPolicyViolationError):
        return Rejected(reason)
    if request.schema is not None and way.takes_schema and re.search("response_format|json_schema|schema", text):
        way.takes_schema = False
        return Unavailable(f"{reason} (asked again without a JSON schema)")
    if count > 1 and (not way.gave_siblings or re.search(r"""['"`]n['"`]|\bn\s*[=>]|\bn (must|should)""", text)):
        return NoSiblings(reason)
    return Rejected(reason)


def _never_connected(error: BaseException) -> bool:
    """Whether nobody answered at all: connection refused, no such host."""
    from aiohttp import ClientConnectorError

    return any(isinstance(cause, ConnectionRefusedError | ClientConnectorError) for cause in _causes(error))


def _was_cut_off(error: BaseException) -> bool:
    """Whether the provider may have answered, and the answer was lost or cannot be read: no error status came."""
    from httpx import TransportError

    is_lost = any(isinstance(cause, TransportError) for cause in _causes(error))
    return is_lost or not getattr(error, "status_code", 0) >= 500


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _retry_after_s(error: Exception) -> float | None:
    """Read how long the provider asks to wait: milliseconds (OpenAI), seconds, or a date."""
    headers: Mapping[str, str] = getattr(error, "litellm_response_headers", None) or {}
    with suppress(ValueError):
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if wait := headers.get("retry-after"):
            return max(0.0, float(wait) if wait[:1].isdigit() else _seconds_until(wait))
    return None


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()


def _reason(error: Exception) -> str:
    """Return what the provider itself said, in one line of at most 300 characters."""
    text = re.sub(r"^(litellm\.\w+: |\w+Error: |\w+Exception - )+", "", str(error))
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    text = re.sub(r" ssl:(<[^>]*>|\w+)", "", text.partition("Traceback (most recent")[0])
    return " ".join(text.split())[:300]


def _scrubbed(text: str, model: ModelSpec) -> str:
    """Take keys out of a provider's message; some quote them."""
    for name, value in os.environ.items():
        is_key = name == model.api_key_env or name.endswith("_API_KEY")
        if is_key and len(value) >= SHORTEST_KEY:
            text = text.replace(value, "[key]")
    return re.sub(r"\b(sk|gsk|xai|key)[-_][\w-]{8,}", "[key]", text)
