"""One HTTP request to one model: its arguments, and the raw response with its cost.

limiter.py decides when to send and to retry; response.py reads the response.
"""

import asyncio
import copy
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

from pydantic import BaseModel, JsonValue

from malt.canonical_json import digest
from malt.concurrency import within
from malt.config.limits import Limits
from malt.config.roles import ModelSpec
from malt.errors import ConfigError, MaltError
from malt.llm.faults import NoSiblings, RateLimited, Unavailable, Unusable
from malt.llm.provider import embedded, openai_compatible
from malt.llm.provider.errors import classify_error, name_endpoint, read_reason, tidy_reason, translate_error
from malt.llm.provider.openai_compatible import HttpRefusal, HttpReply
from malt.llm.provider.routing import (
    Prices,
    Route,
    find_provider,
    find_route,
    forget_route,
    import_litellm,
    is_own_address,
    list_supported,
    look_up_prices,
)
from malt.llm.rate_limit.rate import NO_LIMITS, AdvertisedLimits, read_limits
from malt.llm.request import CompletionRequest
from malt.llm.response import as_list, find_fault, has_usage, read_error, read_token_count

_OWN_KEYS = frozenset(
    {"model", "messages", "n", "stream", "temperature", "max_tokens", "max_completion_tokens", "top_p", "seed"}
    | {"timeout", "response_format", "fallbacks", "api_base", "base_url", "api_key", "num_retries", "max_retries"}
    | {"drop_params", "mock_response", "custom_llm_provider"}
)
"""Keys that `extra` may not set: the config has its own key for them, or they are internal to this module."""

NO_KEY = "none"
"""API key for servers that require one and accept any."""
_UNCAPPED = Limits()
_MOST_USD = 10_000.0
"""Bound on a plausible cost of one request; a higher one reported by a provider is ignored as a mistake."""
_NO_TIMEOUT_S = 86_400.0
"""Time-out given to LiteLLM, too long to matter: `send` has its own, which pauses while the process is stopped."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One raw response, which is stored before anything reads it."""

    response: dict[str, JsonValue]
    """The whole chat-completion body as received, less the choices that the provider broke off."""
    latency_s: float
    cost_usd: float | None
    """Cost of the whole request: the provider's figure, else by LiteLLM's prices, else None; 0 if embedded."""
    granted: AdvertisedLimits = NO_LIMITS

    @property
    def total_tokens(self) -> int | None:
        """Tokens of prompt and completions as counted by the provider, or None."""
        usage = self.response.get("usage")
        if not has_usage(usage):
            return None
        choices = [choice for choice in as_list(self.response.get("choices")) if isinstance(choice, dict)]
        by_choice = [read_token_count(choice.get("completion_tokens")) for choice in choices]
        counted = [tokens for tokens in by_choice if tokens is not None]
        if counted and len(counted) == len(choices):  # the embedded server's usage covers the first choice alone
            return sum(counted, read_token_count(usage.get("prompt_tokens")) or 0)
        return read_token_count(usage.get("total_tokens"))


async def send(request: CompletionRequest, first: int, count: int) -> Reply:
    """Request samples first … first+count-1 in one HTTP request, without retries; the provider may return fewer.

    Raises a class of faults.py for limiter.py and its callers to act on. `ConfigError`, for a wrong key, model or
    parameter, and `AccountEmpty` end the run.
    """
    while True:
        route = await find_route(request.model)
        arguments = build_arguments(request, route, first, count)
        if not (embedded.is_embedded(request.model.model) and route.api_base):
            return await _send(request, route, arguments, count)
        async with embedded.hold_lane(route.api_base, request.model.model) as lane:
            if lane is not None:
                at = f"{lane.address}/v1"
                own = {"api_base": at, "cache_prompt": lane.is_new(repr(request.messages))}
                return await _send(request, replace(route, api_base=at), {**arguments, **own}, count)
        forget_route(request.model)


async def _send(request: CompletionRequest, route: Route, arguments: Mapping[str, object], count: int) -> Reply:
    model = request.model
    started = time.perf_counter()
    try:
        body, headers = await within(model.timeout_s, _complete(route, arguments))
    except Exception as error:
        # `from None`: LiteLLM's error, and its causes, may quote the key
        raise classify_error(error, model, route, count, has_schema="response_format" in arguments) from None
    latency_s = time.perf_counter() - started
    try:
        return await _read_reply(route, model, body, read_limits(headers), latency_s)
    except MaltError:
        raise
    except Exception as error:
        reason = tidy_reason(f"{type(error).__name__}: {error}", model)
        raise Unusable(f"{name_endpoint(model)}: the answer cannot be read ({reason})") from None


async def _complete(route: Route, arguments: Mapping[str, object]) -> HttpReply:
    if route.is_compatible:
        try:
            return await openai_compatible.complete(route, arguments)
        except HttpRefusal as refusal:
            raise translate_error(refusal, route) from None
    answer = await import_litellm().acompletion(**arguments)
    kept: dict[str, str] = getattr(answer, "_hidden_params", {}).get("additional_headers") or {}
    headers = {name.removeprefix("llm_provider-"): value for name, value in kept.items()}
    return HttpReply(answer.model_dump(mode="json", warnings=False), headers)


async def _read_reply(
    route: Route, model: ModelSpec, body: object, granted: AdvertisedLimits, latency_s: float
) -> Reply:
    response = take_answers(body, model)
    if embedded.is_embedded(model.model) and route.api_base:
        with suppress(OSError):  # the answer itself has arrived; without a count its tokens are unknown
            await asyncio.to_thread(embedded.count_choices, route.api_base, response)
    route.has_siblings = route.has_siblings or len(as_list(response["choices"])) > 1
    return Reply(response, latency_s, compute_cost(model, response.get("usage")), granted)


def take_answers(body: object, model: ModelSpec) -> dict[str, JsonValue]:
    """Return a response without the choices that the provider broke off.

    Raises `Unavailable` or `RateLimited`, with the provider's own words, where none is left.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(choices, list) or not choices:
        reason = read_error(body) or "answered without choices"
        raise _make_unanswered(reason, model, body)
    faults = [find_fault(choice) for choice in choices]
    answers = [choice for choice, fault in zip(choices, faults, strict=True) if fault is None]
    if not answers:
        raise _make_unanswered(f"broke off: {faults[0]}", model, body)
    return {**body, "choices": answers}


def _make_unanswered(reason: str, model: ModelSpec, body: object) -> MaltError:
    """Return the error for a response without an answer: a rate limit in its body, else perhaps billed."""
    error = body.get("error") if isinstance(body, dict) else None
    message = f"{name_endpoint(model)}: {tidy_reason(reason, model)}"
    if isinstance(error, dict) and error.get("code") == 429:
        return RateLimited(message)
    return Unavailable(message, perhaps_billed=True, has_answered=isinstance(body, dict))


def check(model: ModelSpec, limits: Limits = _UNCAPPED) -> None:
    """Raise `ConfigError` for a fault in a model's config, found without a request.

    Under a cap, the worst case of a request must be computable.
    """
    _check_extra(model)
    read_key(model)
    _check_caps(model, limits)
    check_name(model)
    if not embedded.is_embedded(model.model):
        _check_hosted(model, find_provider(model))


def check_name(model: ModelSpec) -> None:
    """Raise `ConfigError` where no provider has the model, or its weights are missing."""
    if embedded.is_embedded(model.model):
        embedded.check_weights(model.model)
    else:
        find_provider(model)


def _check_extra(model: ModelSpec) -> None:
    if owned := sorted(_OWN_KEYS & model.extra.keys()):
        problem = f"extra may not set {', '.join(owned)}"
        raise ConfigError(f"{model.model}: {problem}; use the config's own key if it has one")


def _check_hosted(model: ModelSpec, provider: str) -> None:
    _check_key(model, provider)
    _check_sampling(model, provider)
    if provider == "hosted_vllm" and not (model.api_base or os.environ.get("HOSTED_VLLM_API_BASE")):
        raise ConfigError(f'{model.model} needs an address: set api_base = "http://…/v1"')


def takes_siblings(model: ModelSpec) -> bool:
    """Whether several samples can be asked for in one request (`n`)."""
    return embedded.is_embedded(model.model) or "n" in list_supported(model, find_provider(model))


def shares_prompt(model: ModelSpec, count: int) -> bool:
    """Whether `count` samples are surely billed for one prompt: other servers may refuse `n`, or ignore it."""
    if embedded.is_embedded(model.model):
        return count <= embedded.SLOTS
    provider = find_provider(model)
    return provider == "openai" and is_own_address(model, provider) and takes_siblings(model)


def find_price(model: ModelSpec, *, batched: bool = False) -> Prices | None:
    """Return LiteLLM's listed price of a token, in a direct request or in a batch; None where it lists none."""
    if embedded.is_embedded(model.model):
        return Prices(0.0, 0.0)
    listed = look_up_prices(model.model)
    return None if listed is None else listed[batched]


def warm_up() -> None:
    """Import LiteLLM ahead of the first request, which would otherwise take seconds longer."""
    import_litellm()


async def close() -> None:
    """Close the connections of the running loop: call it on the loop that sent the requests."""
    if import_litellm.cache_info().currsize:
        await import_litellm().close_litellm_async_clients()
    await openai_compatible.close_client()


def read_key(model: ModelSpec) -> str | None:
    """Read the API key from the environment. Raises `ConfigError` where the named variable is not set."""
    if model.api_key_env is None:
        return None
    if not (key := os.environ.get(model.api_key_env)):
        raise ConfigError(f"{model.model}: api_key_env names {model.api_key_env}, which is not set; export it")
    return key


def _check_caps(model: ModelSpec, limits: Limits) -> None:
    if limits.max_cost_usd is not None and find_price(model) is None:
        raise ConfigError(f"limits.max_cost_usd is set, but the price of {model.model} is not known; remove the cap")
    costs = limits.max_cost_usd is not None and find_price(model) != Prices(0.0, 0.0)
    if model.max_tokens is None and (costs or limits.max_tokens_total is not None):
        raise ConfigError(f"limits has a cap, but {model.model} has no max_tokens, so a worst case is unknown; set it")


def _check_key(model: ModelSpec, provider: str) -> None:
    """Raise for a missing API key. Credentials of other kinds (AWS profiles, say) are left to the provider."""
    if model.api_key_env or model.api_key_block or not is_own_address(model, provider):
        return
    missing = import_litellm().validate_environment(model.model)["missing_keys"]
    if missing and all(name.endswith("API_KEY") for name in missing):
        raise ConfigError(
            f"{model.model} needs a key: export {' or '.join(missing)}, or name its variable in api_key_env"
        )


def _check_sampling(model: ModelSpec, provider: str) -> None:
    try:
        import_litellm().get_optional_params(
            model=model.model.removeprefix(f"{provider}/"), custom_llm_provider=provider, **_sampling_arguments(model)
        )
    except Exception as error:
        raise ConfigError(f"{model.model}: {read_reason(error, model)}") from None


def _sampling_arguments(model: ModelSpec) -> dict[str, JsonValue]:
    wanted = {"temperature": model.temperature, "max_tokens": model.max_tokens, "top_p": model.top_p}
    return {name: value for name, value in wanted.items() if value is not None}


def build_arguments(request: CompletionRequest, route: Route, first: int, count: int) -> dict[str, object]:
    """Return the arguments of LiteLLM's `acompletion`. Raises `NoSiblings` where the provider has no `n`."""
    model = request.model
    arguments: dict[str, object] = {
        "model": route.name,
        "messages": [message._asdict() for message in request.messages],
        "api_base": route.api_base,
        "api_key": read_key(model) or default_key(model, route),
        "timeout": _NO_TIMEOUT_S,
        "max_retries": 0,
        "num_retries": 0,
        "no-log": True,
        **_sampling_arguments(model),
        **copy.deepcopy(model.extra),  # LiteLLM writes into `metadata`, and `extra` is part of every sample's key
    }
    if count > 1:
        if "n" not in route.supported:
            raise NoSiblings(f"{model.model} takes no `n`")
        arguments["n"] = min(count, embedded.SLOTS) if embedded.is_embedded(model.model) else count
    if model.seed is not None and "seed" in route.supported:
        arguments["seed"] = _derive_seed(request, first)
    if request.schema is not None and route.takes_schema:
        arguments["response_format"] = _make_response_format(request.schema)
    return arguments


def default_key(model: ModelSpec, route: Route) -> str | None:
    """Return the API key for a model without `api_key_env`.

    None leaves it to LiteLLM; `NO_KEY` keeps the provider's own key from being sent to another address.
    """
    if model.api_key_block:
        raise ConfigError(f"{model.model}: api_key_block is read by the flows alone; use api_key_env here")
    if embedded.is_embedded(model.model):
        return embedded.KEY
    if not route.gets_own_key:
        return NO_KEY
    is_openai = (
        route.api_base and not model.model.startswith("hosted_vllm/") and route.name.startswith(("hosted_", "openai/"))
    )
    return os.environ.get("OPENAI_API_KEY", NO_KEY) if is_openai else None


def _derive_seed(request: CompletionRequest, first: int) -> int:
    """Return a 31-bit seed derived from the base seed, the node, the first sample and the number of earlier draws."""
    identity: dict[str, JsonValue] = {
        "seed": request.model.seed,
        "question_id": request.question_id,
        "address": request.address,
        "first": first,
        **({"draw": request.draw} if request.draw else {}),
    }
    return int(digest(identity)[:8], 16) & 0x7FFFFFFF


@cache
def _make_response_format(schema: type[BaseModel]) -> object:
    return import_litellm().utils.type_to_response_format_param(schema)


def compute_cost(model: ModelSpec, usage: JsonValue, *, batched: bool = False) -> float | None:
    """Return the cost of a request from its usage: the provider's figure, else by LiteLLM's prices, else None."""
    if embedded.is_embedded(model.model):
        return 0.0
    reported = usage.get("cost") if isinstance(usage, dict) else None
    if isinstance(reported, int | float) and 0 <= reported < _MOST_USD:
        return float(reported)
    if not has_usage(usage) or find_price(model) is None:
        return None
    litellm = import_litellm()
    with suppress(Exception):  # where LiteLLM cannot read the details of a usage, the cost is unknown
        counted = litellm.Usage(**usage)
        if batched:
            return float(sum(litellm.cost_calculator.batch_cost_calculator(counted, model.model)))
        return float(sum(litellm.cost_per_token(model=model.model, usage_object=counted)))
    return None
