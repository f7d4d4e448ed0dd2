"""The rate of requests: even spacing, limits advertised in response headers, and a rate learned from 429s."""

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from malt.llm.rate_limit.policy import Policy


class Pacer:
    """Spaces requests evenly. Time missed beyond a short tolerance is lost: no burst makes up for a pause.

    The tolerance is the spacing of one and a half requests, within bounds: a busy machine often sends one late.
    """

    tolerance_s = (0.02, 0.1)

    def __init__(self) -> None:
        self.ready_at = 0.0

    def take(self, amount: float, per_second: float, now: float) -> None:
        """Delay the next request by the time that `amount` takes at this rate."""
        shortest, longest = self.tolerance_s
        missed_s = min(longest, max(shortest, 1.5 / per_second))
        self.ready_at = max(self.ready_at, now - missed_s) + amount / per_second

    def give_back(self, amount: float, per_second: float) -> None:
        """Undo a part of `take`: an amount that was taken in advance and not used."""
        self.ready_at -= amount / per_second


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was sent, and whether it has met a 429."""

    sent: float
    is_below_peak: bool
    """Whether it was sent at a rate below one that had been granted, or before any rate was known."""
    is_refused: bool = False


class _Epoch:
    """The requests since a cut of the rate that were sent below a rate already granted.

    They are counted when sent, not when answered: 429s come back sooner than answers do.
    """

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque(maxlen=2000)

    @property
    def refused(self) -> int:
        """Number of requests that met a 429."""
        return sum(ticket.is_refused for ticket in self.tickets)

    def age_s(self, now: float) -> float:
        return now - self.tickets[0].sent if self.tickets else 0.0

    @property
    def share(self) -> float:
        """Fraction of the requests that met a 429."""
        return self.refused / max(1, len(self.tickets))

    @property
    def is_even(self) -> bool:
        """Whether the 429s are spread over the epoch; only at its end, they mean that a limit's window ran full."""
        first = next((place for place, ticket in enumerate(self.tickets) if ticket.is_refused), 0)
        return len(self.tickets) - first > len(self.tickets) / 5


class LearnedRate:
    """Rate that an endpoint grants, learned from its 429s; unlimited before the first one.

    Some gateways shed load: they refuse a share of the requests at any rate. Slowing down tells such 429s from those of
    a limit: where it does not help twice, that share is expected from then on, and only a larger one cuts the rate.
    """

    _MEMORY = 100
    """Number of requests over which the expected share is adjusted, and its excess detected."""
    _SIGMAS = 3.0
    """Standard deviations above the expected number of 429s from which there are too many."""
    _MOST_SHED = 0.4
    """Largest share of 429s that counts as load shedding; a larger one means a limit."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._granted: deque[float] = deque()
        self._latest: deque[Ticket] = deque(maxlen=self._MEMORY)
        self._outcomes: deque[bool] = deque(maxlen=30)
        """Latest outcomes, True for a 429; `_latest` has the latest requests, answered or not."""
        self._peak = math.inf
        self._cut_at = 0.0
        self._recovery_s = 0.0
        self._shed = 0.0
        """Share of requests that the endpoint refuses at any rate (load shedding)."""
        self._epoch, self._last_epoch = _Epoch(), _Epoch()

    def note_sent(self, now: float) -> Ticket:
        ticket = Ticket(now, self._peak == math.inf or self.per_second(now) < self._peak)
        self._latest.append(ticket)
        if ticket.is_below_peak:
            self._epoch.tickets.append(ticket)
        return ticket

    def note_granted(self, ticket: Ticket, now: float, latency_s: float) -> None:
        self._granted.append(now)
        while self._granted[0] < now - self._span_s(latency_s):
            self._granted.popleft()
        self._note_outcome(ticket)

    def note_refused(self, ticket: Ticket, now: float, latency_s: float, resumed: float) -> bool:
        """Note a 429; return whether the rate was too high, and is cut. If not, only this request waits.

        `resumed`: time at which the last pause ended.
        """
        ticket.is_refused = True
        self._note_outcome(ticket)
        recent = [at for at in self._granted if at >= max(now - self._span_s(latency_s), resumed)]
        if not recent:  # a 429 when nothing was granted says nothing about the rate
            self._begin_epoch()
            return True
        is_burst = self._is_burst()
        if not is_burst and self._shed and not self._exceeds_shed():
            return False
        if not is_burst and ticket.is_below_peak:
            if (
                self._epoch.refused < self._policy.shed_refusals
                or self._epoch.age_s(now) < self._policy.rate_window_s / 4
            ):
                return False
            if self._slowing_down_did_not_help():
                self._expect_shed(now)
                return False
        self._cut(now, self._granted if is_burst else recent, self._span_s(latency_s) / 2, is_burst=is_burst)
        return True

    def per_second(self, now: float) -> float:
        """Return the allowed rate: just below the last limit after a cut, later past it, then far beyond.

        The cubic is that of TCP CUBIC (RFC 9438): flat near the last limit, steep once that seems to have moved.
        """
        if self._peak == math.inf:
            return math.inf
        progress = (now - self._cut_at) / self._recovery_s - 1
        return self._peak * (1 + self._policy.rate_margin * (progress**3 - 1))

    def _span_s(self, latency_s: float) -> float:
        return max(self._policy.rate_window_s, 2 * latency_s)

    def _note_outcome(self, ticket: Ticket) -> None:
        self._outcomes.append(ticket.is_refused)
        if self._shed and ticket.is_below_peak:
            self._shed += (ticket.is_refused - self._shed) / self._MEMORY
            self._shed = self._shed if 0.1 / self._MEMORY < self._shed < self._MOST_SHED else 0.0

    def _is_burst(self) -> bool:
        """Whether most of the latest requests met a 429: only a limit refuses as many."""
        refused = sum(self._outcomes)
        return refused >= 6 and refused >= 0.6 * len(self._outcomes)

    def _exceeds_shed(self) -> bool:
        expected = len(self._latest) * self._shed
        refused = sum(ticket.is_refused for ticket in self._latest)
        return refused > 1 + expected + self._SIGMAS * math.sqrt(expected)

    def _slowing_down_did_not_help(self) -> bool:
        before, now = self._last_epoch, self._epoch
        return before.is_even and now.is_even and 0 < before.share <= 2 * now.share < 2 * self._MOST_SHED

    def _expect_shed(self, now: float) -> None:
        both = [*self._epoch.tickets, *self._last_epoch.tickets]
        self._shed = sum(ticket.is_refused for ticket in both) / len(both)
        self._cut_at, self._recovery_s = now, self._policy.rate_recovery_s / 60
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch, self._last_epoch = _Epoch(), self._epoch
        self._latest.clear()
        self._outcomes.clear()

    def _cut(self, now: float, granted: Sequence[float], least_s: float, *, is_burst: bool) -> None:
        """Take the rate granted lately for the limit, measured over `least_s` at least."""
        before, kept, measured_s = self._peak, self.per_second(now), now - granted[0]
        measured = len(granted) / max(measured_s, least_s)
        # the rate in force is more exact than a short measurement, or one that lags behind a rising rate
        is_nearer = measured > kept / 2 if is_burst else measured_s < least_s or measured > 0.75 * kept
        self._peak = kept if kept < math.inf and is_nearer else measured
        if self._shed:  # well below the limit, so that any 429s there are shedding and not the limit's
            self._peak *= 0.9
        is_confirmed = abs(self._peak / before - 1) < 0.1  # else it was measured in a burst: probe again soon
        self._recovery_s = self._policy.rate_recovery_s / (1 if is_confirmed else 8)
        self._cut_at = now
        self._granted.clear()
        self._begin_epoch()


_LONGEST_MINUTE_S = 600.0
"""Longest window, as computed from headers, of a limit a minute; beyond it the limit is one an hour or a day.

A fixed window of a minute, seen soon after it started, looks up to ten times as long as it is.
"""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class AdvertisedLimits(NamedTuple):
    """Limits a minute from an endpoint's response headers; None where these say nothing."""

    requests: float | None = None
    tokens: float | None = None


NO_LIMITS = AdvertisedLimits()


def read_limits(headers: Mapping[str, str]) -> AdvertisedLimits:
    """Read `x-ratelimit-limit-requests`, `-tokens` and their like (OpenAI, Groq, Azure, Anthropic)."""
    return AdvertisedLimits(_per_minute(headers, "requests"), _per_minute(headers, "tokens"))


def _per_minute(headers: Mapping[str, str], kind: str) -> float | None:
    limit, remaining = (_read_header(headers, what, kind, float) for what in ("limit", "remaining"))
    if limit is None or not 0 < limit < math.inf:
        return None
    reset_s = _read_header(headers, "reset", kind, parse_seconds)
    if remaining is None or reset_s is None or not remaining < limit:
        return limit
    window_s = reset_s * limit / (limit - remaining)  # the used part refills evenly until the reset
    return limit if window_s <= _LONGEST_MINUTE_S else None


def _read_header(headers: Mapping[str, str], what: str, kind: str, parse: Callable[[str], float]) -> float | None:
    text = headers.get(f"x-ratelimit-{what}-{kind}") or headers.get(f"anthropic-ratelimit-{kind}-{what}")
    with suppress(ValueError, TypeError):
        return parse(text or "")
    return None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the provider asks to wait: from milliseconds (OpenAI), seconds, or a date."""
    wait_s = None
    with suppress(ValueError, TypeError, OverflowError):
        if milliseconds := headers.get("retry-after-ms"):
            wait_s = float(milliseconds) / 1000
        elif wait := headers.get("retry-after"):
            wait_s = parse_seconds(wait) if wait[:1].isdigit() else _seconds_until(parsedate_to_datetime(wait))
    return None if wait_s is None or math.isnan(wait_s) else max(0.0, wait_s)


def parse_seconds(text: str) -> float:
    """Read a duration: `1.5`, `120ms`, `6m0s`, or the ISO 8601 time at which it ends. Raises `ValueError`."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[smhd]))+", text):
        return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", text))
    return _seconds_until(datetime.fromisoformat(text))


def _seconds_until(moment: datetime) -> float:
    in_zone = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (in_zone - datetime.now(UTC)).total_seconds()
