"""Limits shared by several processes: their requests together, counted on arrival, over minutes of virtual time."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.limits import Limits
from malt.llm.rate_limit.limiter import Endpoint, now_s
from malt.llm.rate_limit.rate import NO_LIMITS, AdvertisedLimits
from tests.replies import Reply
from tests.virtual_time import run


@dataclass
class Server:
    """A server that counts requests on arrival, up to 0.5 s after they were sent, and answers up to 0.5 s later."""

    told: AdvertisedLimits = NO_LIMITS
    arrivals: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    async def answer(self) -> Reply:
        await asyncio.sleep(self._random.uniform(0, 0.5))
        self.arrivals.append(now_s())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._random.uniform(0, 0.5))
        finally:
            self.in_flight -= 1
        return replace(Reply(), granted=self.told)


def most_in_a_minute(arrivals: Sequence[float]) -> int:
    """Return the largest number of arrivals in any 60 seconds."""
    most, first = 0, 0
    for last, at in enumerate(arrivals):
        while arrivals[first] < at - 60:
            first += 1
        most = max(most, last + 1 - first)
    return most


async def keep_asking(server: Server, limits: Limits, until_s: float) -> None:
    """Simulate one process with more callers than its share allows, until it is killed."""

    async def caller(endpoint: Endpoint) -> None:
        while True:
            await endpoint.call(server.answer, 10)

    endpoint = Endpoint(limits)
    async with asyncio.timeout_at(until_s):
        await asyncio.gather(*(caller(endpoint) for _ in range(limits.max_in_flight + 1)))


async def die_and_be_replaced(server: Server, limits: Limits, lives_s: Iterator[float], until_s: float) -> None:
    """Simulate one share that passes from each killed process to the next."""
    while now_s() < until_s:
        with pytest.raises(TimeoutError):
            await keep_asking(server, limits, min(until_s, now_s() + next(lives_s)))


def arrived(
    limits: Limits, processes: int, seconds: float, lives_s: tuple[float, float], told: AdvertisedLimits = NO_LIMITS
) -> Server:
    """Return a server after requests from processes with random lifetimes in a range."""
    server, chance = Server(told), random.Random(11)

    async def ask() -> None:
        lives = iter(lambda: chance.uniform(*lives_s), None)
        shares = limits.shares(processes)
        await asyncio.gather(*(die_and_be_replaced(server, share, lives, seconds) for share in shares))

    run(ask())
    return server


LONG, SHORT = (10**6, 10**6), (3, 20)
RATE = Limits(max_in_flight=50, requests_per_minute=600)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_no_minute_sees_more_requests_than_the_limit_and_hardly_fewer(processes: int) -> None:
    server = arrived(RATE, processes, 200, LONG)
    assert most_in_a_minute(server.arrivals) <= 600
    assert len(server.arrivals) >= 0.97 * 600 * 200 / 60


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_that_are_killed_and_replaced_do_not_pass_the_limit(processes: int) -> None:
    assert most_in_a_minute(arrived(RATE, processes, 200, SHORT).arrivals) <= 600


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_no_more_requests_are_in_flight_than_the_limit_and_none_of_it_is_left_unused(processes: int) -> None:
    assert arrived(Limits(max_in_flight=8), processes, 20, LONG).most_in_flight == 8


def test_a_limit_advertised_by_the_endpoint_is_shared_out_too() -> None:
    server = arrived(Limits(max_in_flight=50), 5, 300, LONG, AdvertisedLimits(requests=300))
    assert 0.9 * 300 <= most_in_a_minute([at for at in server.arrivals if at > 60]) <= 300


@given(st.integers(1, 100), st.none() | st.integers(1, 10_000), st.integers(1, 200))
def test_shares_are_whole_parts_that_add_up_to_the_limits(in_flight: int, requests: int | None, wanted: int) -> None:
    limits = Limits(max_in_flight=in_flight, requests_per_minute=requests)
    shares = limits.shares(min(wanted, limits.most_shares))
    assert sum(share.max_in_flight for share in shares) == in_flight
    assert requests is None or sum(share.requests_per_minute or 0 for share in shares) == requests
    assert all(share.requests_per_minute is None or share.requests_per_minute >= 1 for share in shares)


@given(st.integers(1, 8), st.integers(1, 100))
def test_a_cap_holds_for_any_number_of_workers(in_flight: int, workers: int) -> None:
    limits = Limits(max_in_flight=in_flight, max_tokens_total=1000, max_cost_usd=3.0)
    (share, *_) = limits.shares(min(workers, limits.most_shares), workers)
    assert workers * (share.max_cost_usd or 0) <= 3.0 * (1 + 1e-9)
    assert workers * (share.max_tokens_total or 0) <= 1000


@given(st.integers(1, 100), st.integers(1, 10**6), st.integers(1, 100))
def test_shares_of_a_cap_are_equal_so_that_a_process_has_one_account_whichever_it_is_given(
    in_flight: int, tokens: int, wanted: int
) -> None:
    limits = Limits(max_in_flight=in_flight, max_tokens_total=tokens, max_cost_usd=3.0)
    shares = limits.shares(min(wanted, limits.most_shares))
    assert len(set(shares)) == 1
    assert sum(share.max_tokens_total or 0 for share in shares) <= tokens
    assert sum(share.max_cost_usd or 0 for share in shares) <= 3.0 + 1e-9
    assert sum(share.max_in_flight for share in shares) <= in_flight


def test_there_are_no_more_shares_than_requests_in_flight_or_a_minute() -> None:
    assert Limits(max_in_flight=3).most_shares == 3
    assert Limits(max_in_flight=8, requests_per_minute=5).most_shares == 5
    assert Limits(max_in_flight=8, requests_per_minute=0.5).most_shares == 1
