"""An endpoint's limiter: rates, retries and outages, with waits of milliseconds."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from malt.config.limits import Limits
from malt.errors import ConfigError, EndpointDown, RunStopped
from malt.llm.faults import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.rate_limit.limiter import Endpoint, now_s
from malt.llm.rate_limit.policy import PATIENT, Policy
from malt.llm.request import RequestFailed
from tests.replies import Reply

pytestmark = pytest.mark.virtual_time

QUICK = Policy(
    backoff_s=0.002,
    backoff_max_s=0.01,
    pause_s=0.01,
    pause_max_s=0.05,
    rate_window_s=0.1,
    rate_recovery_s=0.4,
    down_after_s=0.3,
    never_up_after_s=0.15,
    probe_max_s=0.02,
)
"""The production policy, about a hundred times faster."""


@dataclass
class Server:
    """A server that answers after `latency_s`, or raises the error that `fault` returns for a question."""

    latency_s: float = 0.001
    fault: Callable[[str], Exception | None] = lambda _question: None
    sent: list[tuple[float, str]] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0

    def ask(self, question: str = "q") -> Callable[[], Awaitable[Reply]]:
        async def attempt() -> Reply:
            self.sent.append((now_s(), question))
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            try:
                fault = self.fault(question)
                await asyncio.sleep(self.latency_s)
            finally:
                self.in_flight -= 1
            if fault:
                raise fault
            return Reply()

        return attempt

    def sent_for(self, question: str) -> int:
        return sum(asked == question for _, asked in self.sent)


async def ask_all(endpoint: Endpoint, server: Server, questions: Sequence[str]) -> list[Reply | BaseException]:
    calls = (endpoint.call(server.ask(question), 10, question) for question in questions)
    return await asyncio.gather(*calls, return_exceptions=True)


def questions(count: int) -> list[str]:
    return [f"q{number}" for number in range(count)]


def failures(results: Sequence[Reply | BaseException]) -> list[BaseException]:
    return [result for result in results if isinstance(result, BaseException)]


def until(moment: float, fault: Exception) -> Callable[[str], Exception | None]:
    return lambda _question: fault if now_s() < moment else None


# room


async def test_no_more_requests_are_under_way_than_the_config_allows() -> None:
    server = Server()
    results = await ask_all(Endpoint(Limits(max_in_flight=5), QUICK), server, questions(60))
    assert failures(results) == []
    assert server.max_in_flight == 5


async def test_requests_held_by_a_gate_start_within_the_limits() -> None:
    server, endpoint, may_begin = Server(), Endpoint(Limits(requests_per_minute=600), QUICK), asyncio.Event()

    async def gate() -> None:
        await may_begin.wait()

    calls = [asyncio.create_task(endpoint.call(server.ask(each), 10, each, gate)) for each in questions(20)]
    await asyncio.sleep(10)
    assert server.sent == []
    may_begin.set()
    await asyncio.gather(*calls)
    times = [at for at, _ in server.sent]
    assert times[-1] - times[0] >= (len(times) - 2) * 0.1


async def test_a_stopped_caller_does_not_wait_for_capacity() -> None:
    server, endpoint, stopped = Server(), Endpoint(Limits(requests_per_minute=1), QUICK), False

    async def gate() -> None:
        if stopped:
            raise RunStopped("stopped")

    began = now_s()
    calls = [asyncio.create_task(endpoint.call(server.ask(each), 10, each, gate)) for each in questions(5)]
    await asyncio.sleep(1)
    stopped = True
    endpoint.wake_waiters()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert len(failures(results)) == 4
    assert now_s() - began < 2


async def test_requests_under_way_grow_from_a_modest_start_to_the_cap() -> None:
    server, endpoint = Server(), Endpoint(Limits(max_in_flight=40), QUICK)
    await ask_all(endpoint, server, questions(16))
    assert server.max_in_flight == QUICK.first_in_flight
    await ask_all(endpoint, server, questions(1000))
    assert server.max_in_flight == 40


async def test_questions_that_were_begun_go_before_new_ones() -> None:
    server, endpoint = Server(), Endpoint(Limits(max_in_flight=2), QUICK)

    async def twice(question: str) -> None:
        for _ in range(2):
            await endpoint.call(server.ask(question), 10, question)

    await asyncio.gather(*(twice(question) for question in questions(8)))
    last_asked = [max(place for place, (_, asked) in enumerate(server.sent) if asked == each) for each in questions(8)]
    assert last_asked == sorted(last_asked)
    assert last_asked[0] < 6


async def test_requests_per_minute_are_spread_evenly() -> None:
    server = Server()
    await ask_all(Endpoint(Limits(requests_per_minute=6000), QUICK), server, questions(31))
    times = [at for at, _ in server.sent]
    assert times[-1] - times[0] >= 30 / 100 - 0.03
    assert max(sum(start <= at < start + 0.05 for at in times) for start in times) <= 8


async def test_tokens_per_minute_count_what_was_used_and_not_what_was_reserved() -> None:
    server, endpoint = Server(), Endpoint(Limits(tokens_per_minute=60_000), QUICK)
    started = now_s()
    for _ in range(20):
        await endpoint.call(server.ask(), tokens=100)  # each uses 10 tokens and takes 10 ms, not 100
    assert 0.15 < now_s() - started < 1.0


async def test_waiting_for_room_uses_up_neither_attempts_nor_time_of_the_request() -> None:
    server, endpoint = Server(latency_s=0.02), Endpoint(Limits(max_in_flight=1), QUICK)

    async def impatient() -> Reply:
        async with asyncio.timeout(0.5):
            return await server.ask()()

    results = await asyncio.gather(*(endpoint.call(impatient, 1) for _ in range(30)))
    assert len(results) == len(server.sent) == 30


# too fast


async def test_a_storm_of_429s_fails_no_request_and_uses_up_no_attempt() -> None:
    server = Server(fault=until(now_s() + 0.3, RateLimited("slow down")))
    results = await ask_all(Endpoint(Limits(), replace(QUICK, attempts=1)), server, questions(50))
    assert failures(results) == []


async def test_retry_after_stops_the_whole_endpoint() -> None:
    server = Server(fault=lambda _: RateLimited("slow down", 0.2) if len(server.sent) == 1 else None)
    endpoint = Endpoint(Limits(max_in_flight=1), replace(QUICK, pause_max_s=60))
    await ask_all(endpoint, server, questions(5))
    (first, _), (second, _), *_ = server.sent
    assert second - first >= 0.2


@pytest.mark.parametrize("asked_s", [86_400.0, float("inf")])
async def test_an_endpoint_that_asks_to_wait_for_a_day_is_probed_one_request_at_a_time_and_says_so(
    asked_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    policy = replace(PATIENT, limited_after_s=900)
    server, endpoint = Server(fault=lambda _: RateLimited("slow down", asked_s)), Endpoint(Limits(), policy)
    started = now_s()
    waiting = asyncio.ensure_future(ask_all(endpoint, server, questions(20)))
    await asyncio.sleep(30)
    assert "to wait" in endpoint.throttled_by
    results = await waiting
    assert {type(result) for result in results} == {EndpointDown}
    assert now_s() - started == pytest.approx(900, abs=5)
    assert "the endpoint says takes another" in str(results[0])
    probes = [at for at, _ in server.sent if at > started + 1]
    assert 12 <= len(probes) <= 16
    assert caplog.text.count("asks to wait") == 1


async def test_a_run_goes_on_with_the_first_probe_that_is_answered() -> None:
    server = Server(fault=until(now_s() + 150, RateLimited("slow down", 86_400)))
    started = now_s()
    assert failures(await ask_all(Endpoint(Limits(), PATIENT), server, questions(20))) == []
    assert now_s() - started < 150 + 2 * PATIENT.pause_max_s


async def test_an_endpoint_that_answers_with_nothing_usable_is_no_outage() -> None:
    server = Server(fault=lambda _: Unavailable("no choices", has_answered=True))
    results = await ask_all(Endpoint(Limits(), QUICK), server, questions(8))
    assert {type(result) for result in results} == {RequestFailed}


async def test_questions_that_failed_in_an_earlier_run_are_no_outage() -> None:
    server, endpoint = Server(fault=lambda _: Unavailable("500: the adapter is missing")), Endpoint(Limits(), QUICK)
    calls = (endpoint.call(server.ask(each), 10, each, has_failed=True) for each in questions(8))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {RequestFailed}
    assert "the adapter is missing" in str(results[0])


async def test_a_burst_of_429s_cuts_the_requests_under_way_once() -> None:
    refused = iter([True] * 16)
    server = Server(fault=lambda _: RateLimited("slow down") if next(refused, False) else None)
    endpoint = Endpoint(Limits(), QUICK)
    waiting = asyncio.ensure_future(ask_all(endpoint, server, questions(16)))
    await asyncio.sleep(0.005)
    assert endpoint.window == 8
    assert failures(await waiting) == []


async def test_errors_of_the_server_are_no_congestion() -> None:
    server = Server(fault=lambda question: Unavailable("500") if server.sent_for(question) == 1 else None)
    endpoint = Endpoint(Limits(), replace(QUICK, down_questions=100))
    await ask_all(endpoint, server, questions(16))
    assert endpoint.window >= 16


# unavailable


async def test_a_request_is_asked_again_with_growing_waits_and_then_fails_with_its_reason() -> None:
    server = Server(fault=lambda _: Unavailable("m at http://x: the server is having a bad day"))
    with pytest.raises(RequestFailed, match=r"bad day; gave up after 5 attempts"):
        await Endpoint(Limits(), QUICK).call(server.ask(), 1)
    times = [at for at, _ in server.sent]
    assert len(times) == 5
    assert times[4] - times[3] > times[1] - times[0]


async def test_a_rejected_prompt_is_not_asked_again() -> None:
    server = Server(fault=lambda _: Rejected("too long"))
    with pytest.raises(RequestFailed, match="too long"):
        await Endpoint(Limits(), QUICK).call(server.ask(), 1)
    assert len(server.sent) == 1


@pytest.mark.parametrize("error", [NoSiblings("n"), ConfigError("wrong key")])
async def test_errors_that_waiting_cannot_cure_are_raised_at_once(error: Exception) -> None:
    server, endpoint = Server(fault=lambda _: error), Endpoint(Limits(), QUICK)
    with pytest.raises(type(error)):
        await endpoint.call(server.ask(), 1)
    assert len(server.sent) == 1
    assert endpoint.in_flight == 0


async def test_a_cancelled_request_gives_its_room_back() -> None:
    server, endpoint = Server(latency_s=10), Endpoint(Limits(max_in_flight=1), QUICK)
    stuck = asyncio.create_task(endpoint.call(server.ask(), 1))
    queued = asyncio.create_task(endpoint.call(server.ask(), 1))
    await asyncio.sleep(0.01)
    queued.cancel()
    stuck.cancel()
    await asyncio.gather(stuck, queued, return_exceptions=True)
    server.latency_s = 0
    assert await endpoint.call(server.ask(), 1)


# outages


@pytest.mark.parametrize("outage", [Unavailable("503"), Unreachable("connection refused")])
async def test_an_outage_in_the_middle_costs_time_and_nothing_else(outage: Exception) -> None:
    server, endpoint = Server(), Endpoint(Limits(max_in_flight=8), QUICK)
    assert failures(await ask_all(endpoint, server, questions(8))) == []
    server.fault = until(now_s() + 0.2, outage)
    assert failures(await ask_all(endpoint, server, questions(50))) == []
    assert len(server.sent) < 8 + 50 + 40  # single probes, not fifty requests at a time


@pytest.mark.parametrize("outage", [Unavailable("503"), Unreachable("connection refused")])
async def test_an_endpoint_that_stays_down_ends_the_run_after_the_documented_time(outage: Exception) -> None:
    server, endpoint = Server(), Endpoint(Limits(), QUICK)
    await ask_all(endpoint, server, questions(3))
    server.fault = lambda _: outage
    started = now_s()
    results = await ask_all(endpoint, server, questions(50))
    assert {type(result) for result in results} == {EndpointDown}
    assert QUICK.down_after_s <= now_s() - started < QUICK.down_after_s + 0.2
    assert str(outage) in str(results[0])


async def test_a_wrong_address_ends_the_run_sooner() -> None:
    server, endpoint = Server(fault=lambda _: Unreachable("connection refused")), Endpoint(Limits(), QUICK)
    started = now_s()
    with pytest.raises(EndpointDown):
        await endpoint.call(server.ask(), 1)
    assert now_s() - started < QUICK.down_after_s


async def test_questions_that_always_fail_are_no_outage() -> None:
    bad = {"q3", "q11"}
    server = Server(fault=lambda question: Unavailable("500") if question in bad else None)
    endpoint = Endpoint(Limits(), QUICK)
    results = await ask_all(endpoint, server, [name for name in questions(20) for _ in range(9)])
    assert {type(error) for error in failures(results)} == {RequestFailed}
    assert len(failures(results)) == 2 * 9


async def test_more_bad_questions_than_make_an_outage_are_none_while_others_are_answered() -> None:
    server = Server(fault=lambda question: Unavailable("500") if int(question[1:]) % 2 else None)
    results = await ask_all(Endpoint(Limits(), QUICK), server, questions(40))
    assert [type(result) for result in results] == [Reply, RequestFailed] * 20
