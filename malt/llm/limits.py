"""How fast and how often: one `Endpoint` for all requests to a model. For how much is budget.py's."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from malt.errors import EndpointDown, RequestFailed
from malt.llm.budget import AnswerT
from malt.llm.faults import NoSiblings, RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.turns import Turns
from malt.spec import Limits


@dataclass(frozen=True, slots=True)
class Policy:
    """The constants of waiting, in seconds; tests shrink them."""

    attempts: int = 5
    """Tries of one request that only ever was unavailable."""
    backoff_s: float = 0.5
    """Wait before the second try; doubles with each, less a random part of up to half."""
    backoff_max_s: float = 20.0
    first_in_flight: int = 16
    """Requests under way at the start; doubles each round trip until the first 429."""
    increase: float = 4.0
    """Requests under way added each round trip after it."""
    cut: float = 0.5
    """What a burst of 429s leaves of the requests under way."""
    pause_s: float = 1.0
    """Pause after a burst of 429s that does not say how long; doubles while nothing else comes."""
    pause_max_s: float = 60.0
    rate_window_s: float = 2.0
    """Over how long the rate that an endpoint grants is measured."""
    rate_recovery_s: float = 20.0
    """Half the time after a 429 until the rate is what was granted before; then it grows, faster and faster."""
    rate_margin: float = 0.03
    """How far below that it stays meanwhile."""
    down_questions: int = 5
    """So many different questions that fail, with no answer between, are an outage and not the prompts' fault."""
    down_after_s: float = 120.0
    """An outage this long ends the run. Until then single requests probe, and none uses up its attempts."""
    never_up_after_s: float = 20.0
    """The same for an endpoint that has not answered once, as with a wrong address."""
    limited_after_s: float = 900.0
    """So long without anything but 429s, longer than any provider's window of a minute, ends the run."""
    probe_max_s: float = 5.0
    """Longest wait between two probes."""


class Schedule:
    """Turns at an even rate. A turn missed by more than `slack_s` is lost, so that no burst makes up for a pause."""

    slack_s = 0.02

    def __init__(self) -> None:
        self.ready_at = 0.0

    def take(self, amount: float, per_second: float, now: float) -> None:
        """Move the next turn back by what was just taken."""
        self.ready_at = max(self.ready_at, now - self.slack_s) + amount / per_second

    def give_back(self, amount: float, per_second: float) -> None:
        """Return what was taken in advance and not used."""
        self.ready_at -= amount / per_second


class Pace:
    """The rate that an endpoint grants, learned from its 429s: nothing is known before the first."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._granted: deque[float] = deque()
        self._peak = math.inf
        self._cut_at = 0.0
        self._recovery_s = 0.0

    def granted(self, now: float, latency_s: float) -> None:
        """Note an answer."""
        self._granted.append(now)
        span = max(self._policy.rate_window_s, 2 * latency_s)
        while self._granted[0] < now - span:
            self._granted.popleft()

    def cut(self, now: float, latency_s: float, resumed: float) -> None:
        """Take what was granted lately for the limit. A 429 when nothing was granted says nothing about the rate."""
        span = max(self._policy.rate_window_s, 2 * latency_s)
        recent = [at for at in self._granted if at >= max(now - span, resumed)]
        if not recent:
            return
        before, kept, measured_s = self._peak, self.per_second(now), now - recent[0]
        measured = len(recent) / max(measured_s, span / 2)
        # what was kept is nearer than a measurement that is short, or behind a rising rate
        is_kept_nearer = kept < math.inf and (measured_s < span / 2 or measured > 0.75 * kept)
        self._peak = kept if is_kept_nearer else measured
        is_confirmed = abs(self._peak / before - 1) < 0.1  # else it came from a burst: look again soon
        self._recovery_s = self._policy.rate_recovery_s / (1 if is_confirmed else 8)
        self._cut_at = now
        self._granted.clear()

    def per_second(self, now: float) -> float:
        """Return the rate to keep: just below the last limit, past it after a while, then far beyond.

        The cubic is that of TCP CUBIC (RFC 9438): flat where the limit was, steep where it must have moved.
        """
        if self._peak == math.inf:
            return math.inf
        progress = (now - self._cut_at) / self._recovery_s - 1
        return self._peak * (1 + self._policy.rate_margin * (progress**3 - 1))


class Health:
    """Whether an endpoint is down, or only some prompts fail there.

    A question that failed while others were answered fails for its own reasons, and is no sign of an outage.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._was_up = False
        self._failing: dict[str, float] = {}
        self._failing_alone: set[str] = set()
        self._out_since: float | None = None
        self._probes = 0
        self.probe_at = 0.0
        """Not to be asked before."""

    @property
    def is_out(self) -> bool:
        """Whether only probes may be sent."""
        return self._out_since is not None

    @property
    def patience_s(self) -> float:
        """How long an outage may last."""
        return self._policy.down_after_s if self._was_up else self._policy.never_up_after_s

    @property
    def down_at(self) -> float:
        """When patience ends, if no answer comes."""
        return math.inf if self._out_since is None else self._out_since + self.patience_s

    def answered(self, question: str) -> None:
        """Note any answer that shows a working endpoint, a refusal too."""
        if not self.is_out:
            self._failing_alone |= self._failing.keys()
        self._failing_alone.discard(question)
        self._failing.clear()
        self._out_since, self._probes, self._was_up, self.probe_at = None, 0, True, 0.0

    def failed(self, question: str, now: float, *, unreachable: bool) -> bool:
        """Note a failure; return whether it counts against the request rather than the endpoint."""
        if unreachable or question not in self._failing_alone:
            self._failing.setdefault(question, now)
        if not self.is_out and (unreachable or len(self._failing) >= self._policy.down_questions):
            self._out_since = min(self._failing.values())
        if self.is_out and now >= self.probe_at:
            self.probe_at = now + min(self._policy.probe_max_s, self._policy.backoff_s * 2 ** min(self._probes, 30))
            self._probes += 1
        return not self.is_out


class Endpoint:
    """The limiter that all requests of a process to one model at one address with one key share.

    Requests of the question that came first are sent first. All methods belong to one event loop.
    """

    def __init__(self, limits: Limits, policy: Policy = Policy()) -> None:
        self.siblings = True
        """Whether several samples may be asked for in one request; callers note here what they learn."""
        self.in_flight = 0
        self._limits = limits
        self._policy = policy
        self._window = float(min(policy.first_in_flight, limits.max_in_flight))
        self._slow_start, self._is_full = True, False
        self._latency_s = 0.0
        self._paused_until = 0.0
        self._cut_at = 0.0
        self._strikes = 0
        self._limited_since = math.inf
        self._pace, self._health = Pace(policy), Health(policy)
        self._learned, self._requests, self._tokens = Schedule(), Schedule(), Schedule()
        self._turns, self._changed = Turns(), asyncio.Event()
        self._last_failure = ""
        self._anonymous = count()

    @property
    def window(self) -> int:
        """How many requests may be under way now."""
        return 1 if self._health.is_out else int(self._window)

    async def call(self, attempt: Callable[[], Awaitable[AnswerT]], tokens: int, question: str = "") -> AnswerT:
        """Make attempts, each when the endpoint has room for it, until one is answered.

        `tokens` is the most that one attempt can take. `question` says who goes first, and tells an outage from a
        question that always fails; without it each call counts as a question of its own.

        Raises `RequestFailed` after the last attempt or a rejection, `EndpointDown` when an outage outlasts patience;
        everything else that `attempt` raises goes through.
        """
        question = question or f"#{next(self._anonymous)}"
        failures = 0
        while True:
            await self._wait_for_room(tokens, question)
            try:
                return await self._make(attempt, tokens, question)
            except RateLimited:
                continue
            except Unavailable as error:
                self._last_failure = str(error)
                unreachable = isinstance(error, Unreachable)
                failures += self._health.failed(question, time.monotonic(), unreachable=unreachable)
                if failures == self._policy.attempts:
                    raise RequestFailed(f"{error}; gave up after {failures} attempts") from error
            await asyncio.sleep(self._backoff_s(failures))

    async def _make(self, attempt: Callable[[], Awaitable[AnswerT]], tokens: int, question: str) -> AnswerT:
        sent, used = time.monotonic(), 0
        try:
            answer = await attempt()
        except RateLimited as error:
            self._health.answered(question)
            self._slow_down(sent, error.retry_after_s)
            raise
        except (Rejected, NoSiblings):
            self._health.answered(question)
            raise
        else:
            self._health.answered(question)
            self._speed_up(sent)
            used = tokens if answer.total_tokens is None else answer.total_tokens
            return answer
        finally:
            self.in_flight -= 1
            if self._limits.tokens_per_minute:
                self._tokens.give_back(tokens - used, self._limits.tokens_per_minute / 60)
            self._changed.set()

    async def _wait_for_room(self, tokens: int, question: str) -> None:
        async with self._turns.turn(question):
            while (wait_s := self._wait_s(time.monotonic())) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_s == math.inf else wait_s):
                        await self._changed.wait()
            self.in_flight += 1
            self._take_turn(tokens, time.monotonic())

    def _wait_s(self, now: float) -> float:
        """Return how long the next request must wait at least; more when something changes. Raises `EndpointDown`."""
        if now >= self._health.down_at:
            raise EndpointDown(
                f"{self._last_failure}; no answer for {self._health.patience_s:g} s. "
                "What was paid for is stored: run again when the endpoint is up"
            )
        until_down = self._health.down_at - now
        if now >= self._limited_since + self._policy.limited_after_s:
            raise EndpointDown(
                f"nothing but 429 (too many requests) for {self._policy.limited_after_s:g} s. "
                "What was paid for is stored: run again when the limit has passed"
            )
        self._is_full = self.in_flight >= self.window
        if self._is_full:
            return until_down
        turns = (self._learned.ready_at, self._requests.ready_at, self._tokens.ready_at)
        return min(until_down, max(self._paused_until, self._health.probe_at, *turns) - now)

    def _take_turn(self, tokens: int, now: float) -> None:
        self._learned.take(1, self._pace.per_second(now), now)
        if self._limits.requests_per_minute:
            self._requests.take(1, self._limits.requests_per_minute / 60, now)
        if self._limits.tokens_per_minute:
            self._tokens.take(tokens, self._limits.tokens_per_minute / 60, now)

    def _speed_up(self, sent: float) -> None:
        now = time.monotonic()
        self._strikes = 0
        self._limited_since = math.inf
        self._latency_s += (now - sent - self._latency_s) * (0.1 if self._latency_s else 1)
        self._pace.granted(now, self._latency_s)
        if self._is_full:
            grown = self._window + (1 if self._slow_start else self._policy.increase / self._window)
            self._window = min(float(self._limits.max_in_flight), grown)

    def _slow_down(self, sent: float, retry_after_s: float | None) -> None:
        now, resumed = time.monotonic(), self._paused_until
        self._limited_since = min(self._limited_since, now)
        is_same_burst = sent <= self._cut_at
        if retry_after_s or not is_same_burst:
            own = min(self._policy.pause_max_s, self._policy.pause_s * 2 ** min(self._strikes, 30))
            self._paused_until = max(self._paused_until, now + (retry_after_s or own))
        if is_same_burst:
            return
        self._cut_at, self._slow_start = now, False
        self._strikes += 1
        self._pace.cut(now, self._latency_s, resumed)
        rate = self._pace.per_second(now)
        needed = rate * self._latency_s if rate < math.inf else 0.0  # fewer could not keep the rate that is granted
        self._window = max(1.0, min(self._window, max(self._window * self._policy.cut, needed)))

    def _backoff_s(self, failures: int) -> float:
        longest = min(self._policy.backoff_max_s, self._policy.backoff_s * 2.0 ** max(0, failures - 1))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
