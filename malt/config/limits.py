"""What a run may use, and how it is carried out. No part of a key or a digest."""

from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from malt.config.base import Declared


class Limits(Declared):
    """What the run may use. Never part of a key: changing a limit changes no content."""

    max_cost_usd: float | None = Field(None, ge=0)
    """Hard cap on this run's spending; requests in flight are reserved at their worst case."""
    max_tokens_total: int | None = Field(None, ge=0)
    """Hard cap on this run's tokens, prompt and completion together; reserved in the same way."""
    max_in_flight: int = Field(64, ge=1)
    """Requests under way at once, per endpoint."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Per endpoint."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Per endpoint, prompt and completion together."""
    _sharers: int = PrivateAttr(1)

    @property
    def capped(self) -> bool:
        """Whether the run may spend only so much."""
        return self.max_cost_usd is not None or self.max_tokens_total is not None

    @property
    def most_shares(self) -> int:
        """Among how many processes they can be shared out: each needs a request in flight, and one a minute."""
        a_minute = self.max_in_flight if self.requests_per_minute is None else int(self.requests_per_minute)
        return max(1, min(self.max_in_flight, a_minute))

    @property
    def sharers(self) -> int:
        """How many processes have such a share; what an endpoint tells of its limits is for all of them."""
        return self._sharers

    def shares(self, processes: int, workers: int = 1) -> "tuple[Limits, ...]":
        """Return what each of at most `most_shares` processes may use, so that together they stay inside.

        Counts are shared out whole: 8 among 3 are 3, 3 and 2. Under a cap each is the smallest: whichever batches a
        process gets then, it keeps one account for them all. A cluster may have more `workers` than shares; a batch
        lands on any, and so each has an account.
        """
        accounts = max(processes, workers)
        if accounts == 1:
            return (self,)
        numbers = [processes - 1] * processes if self.capped else range(processes)
        return tuple(self._share(number, processes, accounts) for number in numbers)

    def _share(self, number: int, processes: int, accounts: int) -> "Limits":
        def part(limit: float | None) -> float | None:
            return None if limit is None else limit / processes

        def whole(limit: float | None) -> int | None:
            return None if limit is None else int(limit) // processes + (number < int(limit) % processes)

        return Limits(
            max_cost_usd=None if self.max_cost_usd is None else self.max_cost_usd / accounts,
            max_tokens_total=None if self.max_tokens_total is None else self.max_tokens_total // accounts,
            max_in_flight=whole(self.max_in_flight) or 1,
            requests_per_minute=whole(self.requests_per_minute) or part(self.requests_per_minute),
            tokens_per_minute=part(self.tokens_per_minute),
        ).among(processes)

    def among(self, processes: int) -> "Limits":
        """Return these as the limits that each of some processes has."""
        limits = self.model_copy()
        limits._sharers = processes
        return limits


class RunOptions(Declared):
    """How the run is carried out. Never part of a key."""

    mode: Literal["direct", "batch"] = "direct"
    """`batch`: a level of all trees at once through OpenAI's batch API, at half price, within a day each; models that
    have none are asked directly."""
    wait: bool = True
    """In batch mode: stay until all batches have ended. Off: hand in, collect what is there, and end; run again."""
    tracking: Literal["auto", "branch", "question", "shard"] = "auto"
    """What a Prefect task run is: an expansion of a node (`branch`), a question, a batch of them (`shard`).

    auto: by size."""
    task_runner: str = Field("threads", pattern=r"^(threads|processes|dask|ray|tcp://.+)$")
    """threads, processes, dask, ray, or tcp://… of a Dask scheduler."""
    on_incomplete: Literal["publish", "fail"] = "publish"
    """When branches failed: publish the complete trees, or publish nothing."""

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.mode == "batch" and (self.task_runner != "threads" or self.tracking == "branch"):
            raise ValueError('mode = "batch" asks level by level, in one process; leave task_runner and tracking out')
        if self.mode == "direct" and not self.wait:
            raise ValueError('wait = false (--no-wait) is for mode = "batch"; leave it out, or set that mode')
        return self
