"""Rate limits in response headers, as providers write them."""

from datetime import UTC, datetime, timedelta

import pytest

from malt.llm.rate_limit.rate import AdvertisedLimits, parse_seconds, read_limits

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "30000",
    "x-ratelimit-remaining-tokens": "29000",
    "x-ratelimit-reset-tokens": "2s",
}
GROQ = {
    "x-ratelimit-limit-requests": "14400",  # a day
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-tokens": "17700",
    "x-ratelimit-reset-tokens": "1s",
}
ONLY_LIMITS = {"x-ratelimit-limit-requests": "1200", "x-ratelimit-limit-tokens": "0"}


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, AdvertisedLimits(None, None)),
        (OPENAI, AdvertisedLimits(500, 30000)),
        (GROQ, AdvertisedLimits(None, 18000)),
        (ONLY_LIMITS, AdvertisedLimits(1200, None)),
        ({"x-ratelimit-limit-requests": "many"}, AdvertisedLimits(None, None)),
        ({"anthropic-ratelimit-requests-limit": "50"}, AdvertisedLimits(50, None)),
    ],
)
def test_limits_per_minute_are_read_from_headers(headers: dict[str, str], told: AdvertisedLimits) -> None:
    assert read_limits(headers) == told


def test_a_moment_of_reset_is_as_good_as_a_duration() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "40",
        "anthropic-ratelimit-requests-reset": (datetime.now(UTC) + timedelta(seconds=12)).isoformat(),
    }
    assert read_limits(headers) == AdvertisedLimits(50, None)
    headers["anthropic-ratelimit-requests-reset"] = (datetime.now(UTC) + timedelta(hours=12)).isoformat()
    assert read_limits(headers) == AdvertisedLimits(None, None)


@pytest.mark.parametrize(
    ("text", "s"), [("7", 7), ("1.5", 1.5), ("120ms", 0.12), ("6m0s", 360), ("2m59.56s", 179.56), ("1h2m3s", 3723)]
)
def test_durations(text: str, s: float) -> None:
    assert parse_seconds(text) == pytest.approx(s)
