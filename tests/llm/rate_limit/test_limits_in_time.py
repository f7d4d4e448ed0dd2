"""The production policy against realistic endpoints, over minutes of virtual time."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import pytest

from malt.config.limits import Limits
from malt.errors import EndpointDown
from malt.llm.faults import RateLimited, Unavailable, Unreachable
from malt.llm.rate_limit.limiter import Endpoint, now_s
from malt.llm.rate_limit.policy import PATIENT
from tests.replies import Reply
from tests.virtual_time import run


@dataclass
class Server:
    """A server that answers after about a second; it refuses requests above a rate in a sliding window, a random share,
    or all during an outage.
    """

    per_second: float = float("inf")
    window_s: float = 1.0
    retry_after_s: float | None = None
    down: tuple[float, float] = (0, 0)
    outage: Exception = field(default_factory=lambda: Unavailable("503"))
    shed: float = 0.0
    latency_s: float = 1.0
    answered: list[float] = field(default_factory=list)
    refused: int = 0
    _granted: deque[float] = field(default_factory=deque)
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    async def answer(self) -> Reply:
        await asyncio.sleep(self._random.uniform(0.0, 0.04))  # network time: requests do not arrive evenly
        if self.down[0] <= now_s() < self.down[1]:
            raise self.outage
        if self._random.random() < self.shed:
            self.refused += 1
            raise RateLimited("slow down", self.retry_after_s)
        while self._granted and self._granted[0] <= now_s() - self.window_s:
            self._granted.popleft()
        if len(self._granted) >= self.per_second * self.window_s:
            self.refused += 1
            raise RateLimited("slow down", self.retry_after_s)
        self._granted.append(now_s())
        await asyncio.sleep(self.latency_s * self._random.uniform(0.5, 1.5))
        self.answered.append(now_s())
        return Reply()

    def rate(self, since: float, until: float) -> float:
        return sum(since <= at < until for at in self.answered) / (until - since)


def asking(server: Server, requests: int, attempts: int = PATIENT.attempts) -> Sequence[Reply | BaseException]:
    """Send many requests at once, and return all results."""

    async def ask() -> Sequence[Reply | BaseException]:
        endpoint = Endpoint(Limits(), replace(PATIENT, attempts=attempts))
        ask_once: Callable[[], Awaitable[Reply]] = server.answer
        calls = (endpoint.call(ask_once, 10) for _ in range(requests))
        return await asyncio.gather(*calls, return_exceptions=True)

    return run(ask())


def kinds(results: Sequence[Reply | BaseException]) -> set[type]:
    return {type(result) for result in results}


@pytest.mark.parametrize(
    ("per_second", "window_s", "retry_after_s", "most_refused"),
    [(20, 1, None, 0.05), (20, 1, 1.0, 0.05), (5, 1, None, 0.1), (20, 10, None, 0.06)],
)
def test_the_rate_stays_within_a_tenth_of_what_is_granted_and_uses_up_no_attempt(
    per_second: float, window_s: float, retry_after_s: float | None, most_refused: float
) -> None:
    server = Server(per_second, window_s, retry_after_s)
    assert kinds(asking(server, round(per_second * 350), attempts=1)) == {Reply}
    assert 0.9 * per_second <= server.rate(100, 340) <= per_second * 1.01
    assert server.refused < len(server.answered) * most_refused


@pytest.mark.parametrize(("shed", "retry_after_s"), [(0.01, None), (0.02, None), (0.1, None), (0.2, None), (0.1, 1.0)])
def test_429s_that_come_at_any_rate_hardly_slow_a_run_down(shed: float, retry_after_s: float | None) -> None:
    server = Server(latency_s=0.5, shed=shed, retry_after_s=retry_after_s)
    assert rate_of_a_run(server) >= 0.8 * (1 - shed) * rate_without_429s()


@cache
def rate_without_429s() -> float:
    return rate_of_a_run(Server(latency_s=0.5))


def rate_of_a_run(server: Server) -> float:
    assert kinds(asking(server, 4000, attempts=1)) == {Reply}
    return len(server.answered) / max(server.answered)


def test_a_limit_is_kept_among_429s_that_come_at_any_rate() -> None:
    server = Server(20, shed=0.02)
    assert kinds(asking(server, 7000, attempts=1)) == {Reply}
    assert server.rate(100, 340) >= 0.85 * 20


@pytest.mark.parametrize("outage", [Unavailable("503"), Unreachable("connection refused")])
def test_a_run_goes_on_by_itself_after_a_minute_without_the_endpoint(outage: Exception) -> None:
    server = Server(down=(20, 80), outage=outage)
    assert kinds(asking(server, 3000)) == {Reply}
    assert max(after - before for before, after in pairwise(server.answered)) < 60 + 2 * PATIENT.probe_max_s


@pytest.mark.parametrize("outage", [Unavailable("503"), Unreachable("connection refused")])
def test_an_endpoint_that_stays_down_ends_the_run_after_two_minutes(outage: Exception) -> None:
    server = Server(down=(20, 10**6), outage=outage)
    results = asking(server, 3000)
    assert kinds(results) == {Reply, EndpointDown}
    assert len(server.answered) == sum(isinstance(result, Reply) for result in results)
