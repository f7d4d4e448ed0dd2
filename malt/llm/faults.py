"""Classes of failed requests, as provider/ raises them, and what rate_limit/limiter.py does about each.

| class | what came | policy |
|---|---|---|
| `RateLimited` | 429 | the endpoint waits (Retry-After) and slows down; no attempt is used up |
| `Unavailable` | 5xx, 408, a reset, a time-out, no choices, no JSON | again, later and later; then the branch fails |
| `Unreachable` | nobody listens, no such host | an outage: single probes, no attempt used up; at last `EndpointDown` |
| `NoSiblings` | 400 for `n` above 1 | the samples are asked for singly |
| `Rejected` | context overflow, content filter, any other 4xx | the branch fails at once |
| `Unusable` | an answer that is too large, or cannot be read | the same, and it counts at its worst case |
| `AccountEmpty` | 402, `insufficient_quota` | the run stops: exit 3 |
| `ConfigError` | 401, 403, 404, a redirect: key, model or address | the run stops: exit 2 |

An endpoint that stops answering ends the run after two minutes, one that never answered after 20 seconds, one that says
nothing but 429 after 15 minutes (`EndpointDown`, exit 3; rate_limit/policy.py has the figures). Where a role has
fallbacks, what would fail the branch, `EndpointDown` and `AccountEmpty` make the next model be asked instead.
"""

from malt.errors import MaltError
from malt.llm.request import RequestFailed


class RateLimited(MaltError):  # noqa: N818 - named for what happened, as all of these
    """The endpoint says: too many requests or tokens."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(MaltError):  # noqa: N818
    """No usable answer: a dropped connection, a timeout, a 5xx, a body that cannot be read."""

    def __init__(self, message: str, *, perhaps_billed: bool = False, has_answered: bool = False) -> None:
        """`has_answered`: the endpoint is up, though this request came to nothing."""
        super().__init__(message)
        self.perhaps_billed, self.has_answered = perhaps_billed, has_answered


class Unreachable(Unavailable):
    """No connection could be made."""


class NoSiblings(MaltError):  # noqa: N818
    """The provider refuses `n` above 1."""


class Rejected(RequestFailed):
    """The provider refuses this prompt, and always will: its length, its content, its form."""


class Unusable(Rejected):
    """An answer came that is billed and cannot be used; asked again, it would be billed again."""

    perhaps_billed = True
