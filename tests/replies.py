"""A minimal reply of an endpoint, with only the fields that rate limits and budgets read."""

from dataclasses import dataclass

from malt.llm.rate_limit.rate import NO_LIMITS, AdvertisedLimits


@dataclass(frozen=True)
class Reply:
    total_tokens: int | None = 10
    cost_usd: float | None = None
    granted: AdvertisedLimits = NO_LIMITS
