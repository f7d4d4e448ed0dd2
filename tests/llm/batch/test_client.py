"""Patience with a provider's batch API: waiting times during an outage."""

import time

import pytest

from malt.config.roles import ModelSpec
from malt.errors import EndpointDown
from malt.llm.batch.api import BatchClient
from malt.llm.rate_limit.policy import Policy
from tests.batches import BatchProvider

HOUR_S = 3600.0


def desk_of(provider: BatchProvider, *, down_after_s: float) -> BatchClient:
    policy = Policy(backoff_s=0.01, backoff_max_s=0.02, down_after_s=down_after_s, never_up_after_s=0.0)
    return BatchClient(ModelSpec(model="openai/m", api_base=provider.url), policy)


async def test_a_provider_that_becomes_unreachable_is_waited_for_as_in_any_outage() -> None:
    with BatchProvider() as provider:
        client = desk_of(provider, down_after_s=0.5)
        await client.upload(b"{}\n")
    started = time.monotonic()
    with pytest.raises(EndpointDown, match="no better answer for"):
        await client.upload(b"{}\n")
    assert time.monotonic() - started > 0.4


async def test_a_provider_that_was_never_reached_is_given_up_sooner() -> None:
    with BatchProvider() as provider:
        client = desk_of(provider, down_after_s=HOUR_S)
    with pytest.raises(EndpointDown, match="no better answer for"):
        await client.upload(b"{}\n")
