"""The rate policy, with every constant and formula of waiting, retrying and giving up; the circuit breaker."""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """The constants of waiting, in seconds; tests shrink them."""

    attempts: int = 5
    """Attempts of one request before it fails; 429s and outages do not count."""
    backoff_s: float = 0.5
    """Back-off before the second attempt; doubles with each further one, less a random part of up to half."""
    backoff_max_s: float = 20.0
    first_in_flight: int = 16
    """Limit on requests in flight at the start; doubles each round trip until the first 429."""
    increase: float = 4.0
    """Requests in flight added to the limit each round trip after the first 429."""
    cut: float = 0.5
    """Factor by which a burst of 429s cuts the limit on requests in flight."""
    pause_s: float = 0.25
    """Pause after a burst of 429s without Retry-After; doubles with each burst until a request is answered."""
    pause_max_s: float = 60.0
    """Longest pause, whatever Retry-After says; after it a single request probes the endpoint."""
    rate_window_s: float = 2.0
    """Time over which the rate that an endpoint grants is measured."""
    rate_recovery_s: float = 30.0
    """Half of the time from a cut until the rate is back at the one granted before; then it grows ever faster."""
    rate_margin: float = 0.04
    """Fraction by which the rate is below the granted one halfway; twice as much right after the cut."""
    shed_refusals: int = 3
    """Number of 429s, at a rate below one already granted, that suggest load shedding: a share refused at any rate."""
    down_questions: int = 5
    """Number of different questions that must fail, with no answer between, to count as an outage."""
    down_after_s: float = 120.0
    """Length of an outage that ends the run. Until then single requests probe, and use up no attempts."""
    never_up_after_s: float = 20.0
    """The same for an endpoint that has never answered, as with a wrong address."""
    limited_after_s: float = 900.0
    """Time with nothing but 429s that ends the run; far longer than a provider's window of a minute."""
    probe_max_s: float = 5.0
    """Longest wait between two probes."""

    def backoff_after_s(self, failures: int) -> float:
        """Return the back-off in seconds after so many failures in a row: exponential, with jitter."""
        longest = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(max(0, failures - 1), 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret

    def pause_for_s(self, strikes: int, asked_s: float | None) -> float:
        """Return the pause in seconds after a burst of 429s: Retry-After, else doubled each time, with a maximum."""
        own = self.pause_s * 2.0 ** min(strikes, 30)
        return min(self.pause_max_s, asked_s or own)

    def probe_after_s(self, probes: int) -> float:
        """Return the seconds until the next probe of an endpoint that is down."""
        return min(self.probe_max_s, self.backoff_s * 2.0 ** min(probes, 30))


PATIENT = Policy()


class CircuitBreaker:
    """Circuit breaker of an endpoint: it tells an outage from prompts that fail by themselves.

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
        """Time of the next probe; 0 while the endpoint is up."""

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
        """Time at which the outage ends the run, if no answer comes; infinite while the endpoint is up."""
        return math.inf if self._out_since is None else self._out_since + self.patience_s

    def note_answer(self, question: str) -> None:
        """Note an answer, or a refusal: both show that the endpoint works."""
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
