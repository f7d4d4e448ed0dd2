"""Whether an endpoint is down: the breaker. An outage is waited out for a documented time, then the run ends."""

import math

from malt.llm.rate_limit.policy import Policy


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
