"""The progress line: the reason for which a run waits."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from malt.cli.progress import CpuMeter, limited_by
from malt.config.limits import Limits
from malt.llm.faults import RateLimited, Unreachable
from malt.llm.rate_limit.limiter import Endpoint
from malt.llm.rate_limit.policy import Policy
from tests.replies import Reply

pytestmark = pytest.mark.virtual_time


def answered() -> Callable[[], Awaitable[Reply]]:
    async def attempt() -> Reply:
        await asyncio.sleep(0.01)
        return Reply()

    return attempt


def refused(error: Exception) -> Callable[[], Awaitable[Reply]]:
    async def attempt() -> Reply:
        raise error

    return attempt


async def seen(endpoint: Endpoint, attempt: Callable[[], Awaitable[Reply]]) -> str:
    """Return the limiting factor of an endpoint that has ten requests to make."""
    waiting = [asyncio.create_task(endpoint.call(attempt, tokens=100)) for _ in range(10)]
    await asyncio.sleep(0.005)
    held = endpoint.throttled_by
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return held


@pytest.mark.parametrize(
    ("limits", "attempt", "held"),
    [
        (Limits(max_in_flight=4), answered(), "latency, 4 of 4 in flight"),
        (Limits(requests_per_minute=600), answered(), "limit, 600 requests a minute"),
        (Limits(tokens_per_minute=600), answered(), "limit, 600 tokens a minute"),
        (Limits(max_in_flight=1), refused(RateLimited("slow down")), "limit, learned from 429s"),
        (Limits(max_in_flight=1), refused(Unreachable("refused")), "an outage; single requests probe"),
    ],
)
async def test_an_endpoint_names_the_reason_for_which_its_next_request_waits(
    limits: Limits, attempt: Callable[[], Awaitable[Reply]], held: str
) -> None:
    assert await seen(Endpoint(limits, Policy()), attempt) == held


async def test_an_idle_endpoint_limits_nothing() -> None:
    endpoint = Endpoint(Limits(), Policy())
    await endpoint.call(answered(), tokens=1)
    assert endpoint.throttled_by == ""


def test_the_progress_line_names_the_commonest_reason_to_wait() -> None:
    assert limited_by(0.1, ["latency", "limit", "limit"]) == "limit"
    assert limited_by(0.1, []) == "nothing"


def test_a_busy_process_limits_the_rate_itself() -> None:
    assert limited_by(0.95, ["latency"]) == "CPU"


def test_each_reading_of_cpu_use_starts_from_the_one_before() -> None:
    busy, until = CpuMeter(), time.process_time() + 0.05
    while time.process_time() < until:
        pass
    at_work = busy.read()
    time.sleep(0.2)
    assert busy.read() < at_work
