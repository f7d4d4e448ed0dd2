"""The rate policy: every constant and formula of waiting, retrying and giving up, and the breaker of an endpoint."""

import math
import random
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
    """Requests in flight at the start; doubles each round trip until the first 429."""
    increase: float = 4.0
    """Requests in flight added each round trip after it."""
    cut: float = 0.5
    """Factor by which a burst of 429s cuts the requests in flight."""
    pause_s: float = 0.25
    """Pause after a burst of 429s that does not say how long; doubles while nothing else comes."""
    pause_max_s: float = 60.0
    """Longest pause, whatever Retry-After says: then a single request probes."""
    rate_window_s: float = 2.0
    """Over how long the rate that an endpoint grants is measured."""
    rate_recovery_s: float = 30.0
    """Half the time after a 429 until the rate is what was granted before; then it grows, faster and faster."""
    rate_margin: float = 0.04
    """Part by which it stays below that meanwhile."""
    shed_refusals: int = 3
    """So many 429s below a rate that was granted are taken for evidence of a share that is refused at any rate."""
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

    def backoff_after_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row: exponential, with jitter."""
        longest = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(max(0, failures - 1), 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret

    def pause_for_s(self, strikes: int, asked_s: float | None) -> float:
        """Return how long an endpoint rests after a burst of 429s, the last of so many: as it asks, within bounds."""
        own = self.pause_s * 2.0 ** min(strikes, 30)
        return min(self.pause_max_s, asked_s or own)

    def probe_after_s(self, probes: int) -> float:
        """Return how long to wait for the next probe of an endpoint that is down."""
        return min(self.probe_max_s, self.backoff_s * 2.0 ** min(probes, 30))


PATIENT = Policy()


class CircuitBreaker:
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
        """Seconds that an outage may last."""
        return self._policy.down_after_s if self._was_up else self._policy.never_up_after_s

    @property
    def down_at(self) -> float:
        """When patience ends, if no answer comes."""
        return math.inf if self._out_since is None else self._out_since + self.patience_s

    def note_answer(self, question: str) -> None:
        """Note any answer that shows a working endpoint, a refusal too."""
        if not self.is_out:
            self._failing_alone |= self._failing.keys()
        self._failing_alone.discard(question)
        self._failing.clear()
        self._out_since, self._probes, self._was_up, self.probe_at = None, 0, True, 0.0

    def expect_failure(self, question: str) -> None:
        """Note that a question failed in an earlier run, while the endpoint answered others."""
        self._failing_alone.add(question)

    def note_failure(self, question: str, now: float, *, unreachable: bool) -> bool:
        """Note a failure; return whether it counts against the request rather than the endpoint."""
        if unreachable or question not in self._failing_alone:
            self._failing.setdefault(question, now)
        if not self.is_out and (unreachable or len(self._failing) >= self._policy.down_questions):
            self._out_since = min(self._failing.values())
        if self.is_out and now >= self.probe_at:
            self.probe_at = now + self._policy.probe_after_s(self._probes)
            self._probes += 1
        return not self.is_out
