"""Response headers that tell of an endpoint's limits: Retry-After, and requests and tokens a minute."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

_LONGEST_MINUTE_S = 600.0
"""A limit whose window is found to be longer is one of an hour or a day, and no pace.

A window that starts afresh each minute, seen early on, looks up to ten times as long as it is.
"""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class AdvertisedLimits(NamedTuple):
    """Limits a minute, as an endpoint's headers tell them; None where they do not."""

    requests: float | None = None
    tokens: float | None = None


NO_LIMITS = AdvertisedLimits()


def read_limits(headers: Mapping[str, str]) -> AdvertisedLimits:
    """Read `x-ratelimit-limit-requests`, `-tokens` and their like (OpenAI, Groq, Azure, Anthropic)."""
    return AdvertisedLimits(_per_minute(headers, "requests"), _per_minute(headers, "tokens"))


def _per_minute(headers: Mapping[str, str], kind: str) -> float | None:
    limit = _read_number(headers, "limit", kind)
    if limit is None or limit <= 0:
        return None
    remaining, reset_s = _read_number(headers, "remaining", kind), _read_reset(headers, kind)
    if remaining is None or reset_s is None or remaining >= limit:
        return limit
    window_s = reset_s * limit / (limit - remaining)  # what is used up comes back evenly until the reset
    return limit if window_s <= _LONGEST_MINUTE_S else None


def _read_number(headers: Mapping[str, str], what: str, kind: str) -> float | None:
    with suppress(ValueError, TypeError):
        number = float(_header(headers, what, kind) or "")
        return number if math.isfinite(number) else None
    return None


def _read_reset(headers: Mapping[str, str], kind: str) -> float | None:
    text = _header(headers, "reset", kind)
    with suppress(ValueError, TypeError):
        return parse_seconds(text) if text else None
    return None


def _header(headers: Mapping[str, str], what: str, kind: str) -> str | None:
    return headers.get(f"x-ratelimit-{what}-{kind}") or headers.get(f"anthropic-ratelimit-{kind}-{what}")


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the provider asks to wait: milliseconds (OpenAI), seconds, or a date."""
    wait_s = None
    with suppress(ValueError, TypeError, OverflowError):
        if milliseconds := headers.get("retry-after-ms"):
            wait_s = float(milliseconds) / 1000
        elif wait := headers.get("retry-after"):
            wait_s = parse_seconds(wait) if wait[:1].isdigit() else _seconds_until(parsedate_to_datetime(wait))
    return None if wait_s is None or math.isnan(wait_s) else max(0.0, wait_s)


def parse_seconds(text: str) -> float:
    """Read a duration: `1.5`, `120ms`, `6m0s`, or a moment in ISO 8601. Raises `ValueError`."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhd]))+", text):
        return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", text))
    return _seconds_until(datetime.fromisoformat(text))


def _seconds_until(moment: datetime) -> float:
    in_zone = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (in_zone - datetime.now(UTC)).total_seconds()
