"""The rate policy: every constant and formula of waiting, retrying and giving up."""

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
