"""Limiter of all requests to one model at one address: it decides when each is sent and when it is retried.

An endpoint's rate is the lowest of the limits in its users' configs, those in its response headers, and the rate
learned from its 429s (rate.py). Waiting uses up no attempt and no time-out.
"""

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from malt.concurrency import FairLock
from malt.config.limits import Limits
from malt.config.roles import ModelSpec
from malt.errors import AccountEmpty, EndpointDown, RunStopped
from malt.llm.budget import MeteredT
from malt.llm.faults import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.rate_limit.policy import PATIENT, CircuitBreaker, Policy
from malt.llm.rate_limit.rate import NO_LIMITS, AdvertisedLimits, LearnedRate, Pacer, Ticket
from malt.llm.request import RequestFailed

log = logging.getLogger(__name__)

_OUTAGE = "an outage; single requests probe"
_MINUTE_S = 61.0
"""Seconds over which a minute's quota is spread: requests arrive up to a second late, so some come closer together."""


async def _begin_at_once() -> None:
    """Let a request begin at once: the default of `may_begin`."""


class Endpoint:
    """Limiter shared by all requests of a process to one model at one address with one key.

    Requests of the question that arrived first are sent first. Call all methods on one event loop.
    """

    def __init__(self, limits: Limits, policy: Policy = PATIENT) -> None:
        self.siblings = True
        """Whether one request may ask for several samples (`n`); callers clear it when the provider refuses."""
        self.in_flight = 0
        self._throttle = ""
        self._users = [limits]
        self._limits = limits
        self._advertised = NO_LIMITS
        self._given_up: RunStopped | None = None
        self._policy = policy
        self._window = float(min(policy.first_in_flight, limits.max_in_flight))
        self._slow_start, self._is_full = True, False
        self._latency_s = 0.0
        self._paused_until = self._retry_after_until = self._warned_until = 0.0
        self._cut_at = 0.0
        self._strikes = 0
        self._limited_since = math.inf
        self._learned_rate, self._breaker = LearnedRate(policy), CircuitBreaker(policy)
        self._learned, self._requests, self._tokens = Pacer(), Pacer(), Pacer()
        self._lock, self._changed = FairLock(), asyncio.Event()
        self._last_failure = ""
        self._anonymous = count()

    @property
    def is_given_up(self) -> bool:
        """Whether the endpoint is down or its account empty, so that further requests are pointless."""
        return self._given_up is not None

    @property
    def is_unused(self) -> bool:
        return not self._users

    def enter(self, limits: Limits) -> None:
        """Add a user's limits: the lowest of all users' limits applies."""
        self._users.append(limits)
        self._limits = _intersect_limits(self._users)
        self._window = min(self._window, float(self._limits.max_in_flight))

    def leave(self, limits: Limits) -> None:
        self._users.remove(limits)
        self._limits = _intersect_limits(self._users) if self._users else limits

    def wake_waiters(self) -> None:
        """Wake the waiting requests, so that they check whether they may still begin."""
        self._changed.set()

    @property
    def window(self) -> int:
        is_limited = self._strikes > 1 or (self._strikes and self._retry_after_until)  # an answer resets both
        is_probing = self._breaker.is_out or is_limited
        return 1 if is_probing else int(self._window)

    @property
    def throttled_by(self) -> str:
        """Reason why the rate is not higher, for the progress line; empty where nothing is in flight."""
        latency = f"latency, {self.in_flight} of {self._limits.max_in_flight} in flight" if self.in_flight else ""
        return self._throttle or latency

    async def call(
        self,
        attempt: Callable[[], Awaitable[MeteredT]],
        tokens: int,
        question: str = "",
        may_begin: Callable[[], Awaitable[None]] = _begin_at_once,
        *,
        has_failed: bool = False,
    ) -> MeteredT:
        """Make attempts, each when the endpoint has room for it, until one is answered.

        `tokens` is the most that one attempt can take. `question` decides the order, and tells an outage from a
        question that always fails; without it each call counts as a question of its own. `may_begin` is awaited
        before room is taken: requests that waited after that would all be sent at once. `has_failed`: the request
        failed in an earlier run, so that another failure is no sign of an outage.

        Raises `RequestFailed` after the last attempt or a rejection, and `EndpointDown` when an outage lasts too long;
        everything else that `attempt` raises goes through.
        """
        question = question or f"#{next(self._anonymous)}"
        failures = 0
        if has_failed:
            self._breaker.expect_failure(question)
        while True:
            await self._wait_for_room(tokens, question, may_begin)
            ticket = self._learned_rate.note_sent(now_s())
            try:
                return await self._make_attempt(attempt, tokens, question, ticket)
            except AccountEmpty as error:
                self._given_up = error
                raise
            except RateLimited as error:
                await asyncio.sleep(self._slow_down(error, ticket))
            except Unavailable as error:
                failures += self._counts_as_attempt(error, question)
                if failures == self._policy.attempts:
                    raise RequestFailed(f"{error}; gave up after {failures} attempts") from error
                await asyncio.sleep(self._policy.backoff_after_s(failures))

    async def _make_attempt(
        self, attempt: Callable[[], Awaitable[MeteredT]], tokens: int, question: str, ticket: Ticket
    ) -> MeteredT:
        used = 0
        try:
            answer = await attempt()
        except (RateLimited, Rejected, NoSiblings):
            self._breaker.note_answer(question)
            raise
        else:
            self._breaker.note_answer(question)
            self._speed_up(ticket)
            self._advertised = AdvertisedLimits(
                *(new or old for new, old in zip(answer.granted, self._advertised, strict=True))
            )
            used = tokens if answer.total_tokens is None else answer.total_tokens
            return answer
        finally:
            self.in_flight -= 1
            if per_minute := self._tokens_per_minute:
                self._tokens.give_back(tokens - used, per_minute / _MINUTE_S)
            self._changed.set()

    @property
    def _requests_per_minute(self) -> float | None:
        return self._lowest(self._limits.requests_per_minute, self._advertised.requests)

    @property
    def _tokens_per_minute(self) -> float | None:
        return self._lowest(self._limits.tokens_per_minute, self._advertised.tokens)

    def _lowest(self, declared: float | None, advertised: float | None) -> float | None:
        """Stay a little below this process's share of an advertised limit: the provider may count differently."""
        if advertised is not None:
            advertised *= (1 - self._policy.rate_margin) / self._limits.sharers
        return _least((declared, advertised))

    async def _wait_for_room(self, tokens: int, question: str, may_begin: Callable[[], Awaitable[None]]) -> None:
        if self._limits.sharers > 1 and not (self.in_flight or self._lock.is_taken):
            self._take_over(now_s())
        async with self._lock.turn(question):
            await may_begin()
            while (wait_s := self._wait_s(now_s())) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == math.inf else wait_s):
                        await self._changed.wait()
                await may_begin()
            self.in_flight += 1
            self._take_turn(tokens, now_s())

    def _wait_s(self, now: float) -> float:
        """Return how long the next request must wait, unless `_changed` is set before. Raises `RunStopped`."""
        self._give_up_if_hopeless(now)
        until_down = min(self._breaker.down_at, self._limited_since + self._policy.limited_after_s) - now
        self._is_full = self.in_flight >= self.window
        if self._is_full:
            self._throttle = _OUTAGE if self._breaker.is_out else ""
            return until_down
        ready_at, self._throttle = max(
            (now, ""),
            (self._breaker.probe_at, _OUTAGE),
            (self._learned.ready_at, "limit, learned from 429s"),
            (self._paused_until, "limit, learned from 429s" + self._describe_retry_after(": {} to wait", now)),
            (self._requests.ready_at, f"limit, {self._requests_per_minute or 0:,.0f} requests a minute"),
            (self._tokens.ready_at, f"limit, {self._tokens_per_minute or 0:,.0f} tokens a minute"),
        )
        return min(until_down, ready_at - now)

    def _describe_retry_after(self, text: str, now: float) -> str:
        """Fill the rest of the endpoint's Retry-After into a text; return "" where there is none."""
        left_s = self._retry_after_until - now
        return text.format(_show_duration(left_s)) if left_s > 0 else ""

    def _give_up_if_hopeless(self, now: float) -> None:
        stored = "What was paid for is stored: run again when"
        if now >= self._breaker.down_at:
            self._given_up = EndpointDown(
                f"{self._last_failure}; nothing better for {self._breaker.patience_s:g} s. {stored} the endpoint is up"
            )
        elif now >= self._limited_since + self._policy.limited_after_s:
            self._given_up = EndpointDown(
                f"nothing but 429 (too many requests) for {self._policy.limited_after_s:g} s. {stored} the limit has "
                f"passed{self._describe_retry_after(', which the endpoint says takes another {}', now)}"
            )
        if self._given_up is not None:
            raise self._given_up

    def _take_over(self, now: float) -> None:
        """Begin as if a request had just been sent: another process may have used this share while we were idle."""
        if per_minute := self._requests_per_minute:
            self._requests.ready_at = max(self._requests.ready_at, now + _MINUTE_S / per_minute)

    def _take_turn(self, tokens: int, now: float) -> None:
        self._learned.take(1, self._learned_rate.per_second(now), now)
        if per_minute := self._requests_per_minute:
            self._requests.take(1, per_minute / _MINUTE_S, now)
        if per_minute := self._tokens_per_minute:
            self._tokens.take(tokens, per_minute / _MINUTE_S, now)

    def _speed_up(self, ticket: Ticket) -> None:
        now = now_s()
        self._strikes, self._retry_after_until = 0, 0.0
        self._limited_since = math.inf
        self._latency_s += (now - ticket.sent - self._latency_s) * (0.1 if self._latency_s else 1)
        self._learned_rate.note_granted(ticket, now, self._latency_s)
        if self._is_full:
            grown = self._window + (1 if self._slow_start else self._policy.increase / self._window)
            self._window = min(float(self._limits.max_in_flight), grown)

    def _counts_as_attempt(self, error: Unavailable, question: str) -> bool:
        """Note a failure; return whether it counts against the request rather than the endpoint."""
        self._last_failure = str(error)
        if error.has_answered:
            self._breaker.note_answer(question)
            return True
        return self._breaker.note_failure(question, now_s(), unreachable=isinstance(error, Unreachable))

    def _slow_down(self, error: RateLimited, ticket: Ticket) -> float:
        """Slow down for a 429; return how many seconds its request waits before it queues again."""
        now, resumed = now_s(), self._paused_until
        self._limited_since = min(self._limited_since, now)
        pause_s = self._policy.pause_for_s(self._strikes, error.retry_after_s)
        is_same_burst = ticket.sent <= self._cut_at
        if not is_same_burst and not self._learned_rate.note_refused(ticket, now, self._latency_s, resumed):
            return pause_s
        if error.retry_after_s or not is_same_burst:
            self._paused_until = max(self._paused_until, now + pause_s)
            self._note_wait(error, now)
        if not is_same_burst:
            self._cut_at, self._slow_start = now, False
            self._strikes += 1
            self._window = self._cut_window(now)
        return 0.0

    def _cut_window(self, now: float) -> float:
        rate = self._learned_rate.per_second(now)
        needed = rate * self._latency_s if rate < math.inf else 0.0  # fewer in flight could not reach the learned rate
        return max(1.0, min(self._window, max(self._window * self._policy.cut, needed)))

    def _note_wait(self, error: RateLimited, now: float) -> None:
        """Note the Retry-After of a 429; log a long one, once in `limited_after_s`."""
        if not (retry_after_s := error.retry_after_s):
            return
        self._retry_after_until = max(self._retry_after_until, now + retry_after_s)
        if retry_after_s > self._policy.pause_max_s and now >= self._warned_until:
            self._warned_until = now + self._policy.limited_after_s
            every_s, minutes = self._policy.pause_max_s, self._policy.limited_after_s / 60
            retries = f"retrying every {every_s:.0f} s, for {minutes:.0f} minutes at most"
            log.warning("%s; it asks to wait for %s: %s", error, _show_duration(retry_after_s), retries)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def _show_duration(seconds: float) -> str:
    """Format a duration: `45 s`, `12 min`, `23.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _least(limits: Iterable[float | None]) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _intersect_limits(users: Sequence[Limits]) -> Limits:
    return Limits(
        max_in_flight=min(user.max_in_flight for user in users),
        requests_per_minute=_least(user.requests_per_minute for user in users),
        tokens_per_minute=_least(user.tokens_per_minute for user in users),
    ).among(max(user.sharers for user in users))


class EndpointKey(NamedTuple):
    """Identity of an endpoint: model, address and API key."""

    model: str
    api_base: str | None
    key: str | None


class Endpoints:
    """The limiters of a process, by endpoint. Call all methods on the loop that sends the requests."""

    def __init__(self, policy: Policy = PATIENT) -> None:
        self._policy = policy
        self._known: dict[EndpointKey, Endpoint] = {}

    def enter(self, model: ModelSpec, limits: Limits) -> Endpoint:
        """Return a model's endpoint, under these limits until `leave`; one that was given up is replaced."""
        where = endpoint_key(model)
        endpoint = self._known.get(where)
        if endpoint is None or endpoint.is_given_up:
            endpoint = self._known[where] = Endpoint(limits, self._policy)
        else:
            endpoint.enter(limits)
        return endpoint

    def leave(self, endpoint: Endpoint, limits: Limits) -> None:
        """Remove a user's limits; an endpoint without users is forgotten, with all that was learned of it."""
        endpoint.leave(limits)
        if endpoint.is_unused:
            self._known = {where: known for where, known in self._known.items() if known is not endpoint}


def endpoint_key(model: ModelSpec) -> EndpointKey:
    """Return the key under which requests share a limiter. The API key is read from the environment."""
    return EndpointKey(model.model, model.api_base, os.environ.get(model.api_key_env) if model.api_key_env else None)


endpoints = Endpoints()
