"""Translation of provider and connection errors into the classes of faults.py and into errors that end the run."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from aiohttp import ClientConnectorError
from httpx import TransportError

from malt.config.roles import ModelSpec
from malt.config.secret_scan import redact
from malt.errors import AccountEmpty, ConfigError, MaltError
from malt.llm.faults import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable, Unusable
from malt.llm.provider.openai_compatible import HttpRefusal
from malt.llm.provider.routing import Route, import_litellm
from malt.llm.rate_limit.rate import read_retry_after
from malt.llm.response import clean_text, read_error

_LONGEST_REASON = 300
_GAVE_UP_WAITING = (504, 524)
"""Statuses with which a gateway times out while the provider may still be generating."""


def classify_error(
    error: Exception, model: ModelSpec, route: Route, count: int = 1, *, has_schema: bool = False
) -> MaltError:
    """Return our error for a failed request for `count` samples; `has_schema`: the request had a JSON schema."""
    status, place = getattr(error, "status_code", None), name_endpoint(model)
    if isinstance(error, TimeoutError | import_litellm().Timeout):
        return Unavailable(f"{place} gave no answer within {model.timeout_s:g} s", perhaps_billed=True)
    if isinstance(error, import_litellm().UnsupportedParamsError):
        return ConfigError(f"{model.model}: {read_reason(error, model)}")
    if isinstance(error, RecursionError):
        return Unusable(f"{place}: the answer is nested too deeply")
    if unusable := next((cause for cause in _causes(error) if isinstance(cause, Unusable)), None):
        return Unusable(f"{place}: {unusable}")
    reason = f"{place}: {read_reason(error, model)}"
    if fatal := _classify_fatal(error, model, route, reason):
        return fatal
    if status == 429:
        too_large = "request too large" in str(error).lower()  # it exceeds the tokens of a minute: waiting never helps
        return Rejected(reason) if too_large else RateLimited(reason, read_retry_after(_read_headers(error)))
    if isinstance(status, int) and 400 <= status < 500 and status not in {408, 409, 425}:
        return _classify_refusal(error, route, count, reason, has_schema=has_schema)
    return Unreachable(reason) if _never_connected(error) else Unavailable(reason, perhaps_billed=_was_cut_off(error))


def translate_error(error: Exception, route: Route) -> Exception:
    """Return LiteLLM's translation of an error; for a refusal only where that says more than the HTTP status."""
    litellm = import_litellm()
    try:
        litellm.exception_type(route.name.partition("/")[2], error, "openai")
    except Exception as translated:
        tells_more = isinstance(translated, litellm.ContextWindowExceededError | litellm.ContentPolicyViolationError)
        if translated is error or (isinstance(error, HttpRefusal) and not tells_more):
            return error
        translated.__cause__ = error
        return translated
    return error


def _classify_fatal(error: Exception, model: ModelSpec, route: Route, reason: str) -> MaltError | None:
    """Return the error that ends the run, since every other request would meet it too; else None."""
    text = str(error).lower() + str(getattr(error, "body", "")).lower()
    match getattr(error, "status_code", None):
        case 401:
            if model.api_key_env is None and not route.gets_own_key:
                return ConfigError(f"{name_endpoint(model)} asks for a key (401); only a key named in the config is "
                                   "sent there: set api_key_env")  # fmt: skip
            named = f"in {model.api_key_env}" if model.api_key_env else "in the environment"
            return ConfigError(f"{name_endpoint(model)} refused the key {named} (401); set one that is valid there")
        case 402:
            return AccountEmpty(f"{reason} (402); add credit there and run again")
        case 400 | 429 if "insufficient_quota" in text or "credit balance is too low" in text:
            return AccountEmpty(f"{reason} (the account is out of credit); add some there and run again")
        case 403 if "flagged" not in text and "moderation" not in text:
            return ConfigError(f"{reason} (403); the key may not use this model: use another key or model")
        case 404:
            return ConfigError(f"{reason} (404); check the model's name and api_base")
        case 301 | 302 | 303 | 307 | 308 as status:
            target = redact(clean_text(str(_read_headers(error).get("location", ""))))[:_LONGEST_REASON]
            return ConfigError(
                f"{name_endpoint(model)} redirects to {target} ({status}); set api_base to the address for prompts"
            )
    return None


def _classify_refusal(error: Exception, route: Route, count: int, reason: str, *, has_schema: bool) -> MaltError:
    """Tell a rejected prompt from a provider that does not support `n` or a JSON schema."""
    litellm, text = import_litellm(), str(error)
    if isinstance(error, litellm.ContextWindowExceededError | litellm.ContentPolicyViolationError):
        return Rejected(reason)
    if has_schema and re.search("response_format|json_schema|schema", text):
        route.takes_schema = False
        return Unavailable(f"{reason} (asked again without a JSON schema)", has_answered=True)
    if count > 1 and (not route.has_siblings or re.search(r"""['"`]n['"`]|\bn\s*[=>]|\bn (must|should)""", text)):
        return NoSiblings(reason)
    return Rejected(reason)


def _never_connected(error: BaseException) -> bool:
    """Whether no connection was made: refused, or no such host."""
    return any(isinstance(cause, ConnectionRefusedError | ClientConnectorError) for cause in _causes(error))


def _was_cut_off(error: BaseException) -> bool:
    """Whether an answer may have been generated and lost, or is unreadable: all but the provider's own 5xx."""
    is_lost = any(isinstance(cause, TransportError) for cause in _causes(error))
    status = getattr(error, "status_code", 0)
    return is_lost or status in _GAVE_UP_WAITING or not status >= 500


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read_headers(error: Exception) -> Mapping[str, str]:
    return getattr(error, "litellm_response_headers", None) or {}


def read_reason(error: Exception, model: ModelSpec) -> str:
    """Return the provider's own message, without wrappers of LiteLLM, keys and line breaks."""
    text = re.sub(r"^(litellm\.\w+: |\w+Error: |\w+Exception - )+", "", str(error)) or type(error).__name__
    with suppress(ValueError, RecursionError):
        text = read_error(json.loads(text)) or text
    text = re.sub(r" ssl:(<[^>]*>|\w+)", "", text.partition("Traceback (most recent")[0])
    return tidy_reason(text, model)


def tidy_reason(text: str, model: ModelSpec) -> str:
    """Return a provider's message without keys, on one line of at most 300 characters."""
    named = [model.api_key_env] if model.api_key_env else []
    return " ".join(redact(clean_text(text), named).split())[:_LONGEST_REASON]


def name_endpoint(model: ModelSpec) -> str:
    """Return a model's name, and its address if it has one."""
    return f"{model.model} at {redact(model.api_base)}" if model.api_base else model.model
