"""Classes of failed requests, as provider/ raises them, and how rate_limit/limiter.py and its callers treat each.

| class | cause | policy |
|---|---|---|
| `RateLimited` | 429 | the endpoint waits (Retry-After) and slows down; no attempt is used up |
| `Unavailable` | 5xx, 408, a reset, a time-out, no choices, no JSON | retried with back-off; then the branch fails |
| `Unreachable` | connection refused, no such host | an outage: single probes, no attempt used up; then `EndpointDown` |
| `NoSiblings` | 400 for `n` above 1 | each sample is requested by itself |
| `Rejected` | context overflow, content filter, any other 4xx | the branch fails at once |
| `Unusable` | an answer that is too large, or cannot be read | the same, and it counts at its worst case |
| `AccountEmpty` | 402, `insufficient_quota` | the run stops: exit 3 |
| `ConfigError` | 401, 403, 404, a redirect: key, model or address | the run stops: exit 2 |

An endpoint that stops answering ends the run after two minutes, one that never answered after 20 seconds, one that
answers only 429 after 15 minutes (`EndpointDown`, exit 3; rate_limit/policy.py has the figures). Where a role has
fallbacks, the next model is asked instead, also upon `EndpointDown` and `AccountEmpty`.
"""

from malt.errors import MaltError
from malt.llm.request import RequestFailed


class RateLimited(MaltError):  # noqa: N818 - named for what happened, as all of these
    """Too many requests or tokens for the endpoint (429)."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(MaltError):  # noqa: N818
    """No usable answer: a dropped connection, a timeout, a 5xx, a body that cannot be read."""

    def __init__(self, message: str, *, perhaps_billed: bool = False, has_answered: bool = False) -> None:
        """`has_answered`: the endpoint is up, although this request failed."""
        super().__init__(message)
        self.perhaps_billed, self.has_answered = perhaps_billed, has_answered


class Unreachable(Unavailable):
    """No connection could be made."""


class NoSiblings(MaltError):  # noqa: N818
    """The provider refuses `n` above 1."""


class Rejected(RequestFailed):
    """The provider refuses this prompt for its length, content or form; a retry would be refused too."""


class Unusable(Rejected):
    """An answer that was billed and cannot be used; a retry would be billed again."""

    perhaps_billed = True
