"""How fast an endpoint may be asked: turns at an even rate, and the rate that is learned where nobody tells it."""

import math
from collections import deque
from dataclasses import dataclass


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
    pause_s: float = 0.25
    """Pause after a burst of 429s that does not say how long; doubles while nothing else comes."""
    pause_max_s: float = 60.0
    rate_window_s: float = 2.0
    """Over how long the rate that an endpoint grants is measured."""
    rate_recovery_s: float = 30.0
    """Half the time after a 429 until the rate is what was granted before; then it grows, faster and faster."""
    rate_margin: float = 0.04
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


PATIENT = Policy()


class Pacer:
    """Turns at an even rate. What is missed for longer than a moment is lost: no burst makes up for a pause.

    A moment is one turn and a half, within bounds: on a busy machine single turns are missed all the time.
    """

    moment_s = (0.02, 0.1)

    def __init__(self) -> None:
        self.ready_at = 0.0

    def take(self, amount: float, per_second: float, now: float) -> None:
        """Move the next turn back by what was just taken."""
        shortest, longest = self.moment_s
        missed_s = min(longest, max(shortest, 1.5 / per_second))
        self.ready_at = max(self.ready_at, now - missed_s) + amount / per_second

    def give_back(self, amount: float, per_second: float) -> None:
        """Return what was taken in advance and not used."""
        self.ready_at -= amount / per_second


class LearnedRate:
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
