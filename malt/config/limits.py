"""Limits and RunOptions: spending caps, rates, and how a run is carried out. Never part of a key or a digest."""

from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from malt.config.base import Declared


class Limits(Declared):
    """Caps and rates of the run. Never part of a key: changing a limit changes no content."""

    max_cost_usd: float | None = Field(None, ge=0)
    """Hard cap on this run's spending in US dollars; requests in flight count at their worst case."""
    max_tokens_total: int | None = Field(None, ge=0)
    """Hard cap on this run's tokens, prompt and completion together; requests in flight count at their worst case."""
    max_in_flight: int = Field(64, ge=1)
    """Most requests in flight at once, per endpoint."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Most requests per minute, per endpoint. Empty: no limit."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Most tokens per minute, prompt and completion together, per endpoint. Empty: no limit."""
    _sharers: int = PrivateAttr(1)
    _whole: "Limits | None" = PrivateAttr(None)

    @property
    def capped(self) -> bool:
        """Whether money or tokens are capped."""
        return self.max_cost_usd is not None or self.max_tokens_total is not None

    @property
    def most_shares(self) -> int:
        """Most processes that can share these limits: each needs one request in flight and one a minute."""
        a_minute = self.max_in_flight if self.requests_per_minute is None else int(self.requests_per_minute)
        return max(1, min(self.max_in_flight, a_minute))

    @property
    def sharers(self) -> int:
        """Number of processes with such a share; limits that an endpoint reports are for all of them together."""
        return self._sharers

    @property
    def whole(self) -> "Limits":
        """The limits that these are a share of, or these."""
        return self._whole or self

    def shares(self, processes: int, workers: int = 1) -> "tuple[Limits, ...]":
        """Split the limits among at most `most_shares` processes, so that their sum stays within them.

        Counts stay whole: 8 among 3 are 3, 3 and 2. Under a cap all shares equal the smallest, so that a process keeps
        one account whichever batches it gets. A cluster may have more `workers` than shares; since a batch can land on
        any of them, the caps are divided among all workers.
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

        share = Limits(
            max_cost_usd=None if self.max_cost_usd is None else self.max_cost_usd / accounts,
            max_tokens_total=None if self.max_tokens_total is None else self.max_tokens_total // accounts,
            max_in_flight=whole(self.max_in_flight) or 1,
            requests_per_minute=whole(self.requests_per_minute) or part(self.requests_per_minute),
            tokens_per_minute=part(self.tokens_per_minute),
        ).among(processes)
        share._whole = self
        return share

    def among(self, processes: int) -> "Limits":
        """Return a copy that is marked as one of `processes` shares."""
        limits = self.model_copy()
        limits._sharers = processes
        return limits


class RunOptions(Declared):
    """Options for carrying out the run. Never part of a key."""

    mode: Literal["direct", "batch"] = "direct"
    """`batch`: ask one level of all trees at once through OpenAI's batch API, at half price, within a day per level.
    Models without a batch API are asked directly."""
    wait: bool = True
    """Batch mode: wait until all batches have ended. `false`: submit, collect finished batches and exit; run again."""
    tracking: Literal["auto", "branch", "question", "shard"] = "auto"
    """Unit of work of a Prefect task run: a node's expansion (`branch`), a `question`, or a batch of them (`shard`).

    `auto` chooses by the size of the run."""
    task_runner: str = Field("threads", pattern=r"^(threads|processes|dask|ray|tcp://.+)$")
    """Where batches run: threads, processes, dask, ray, or the tcp://… address of a Dask scheduler."""
    on_incomplete: Literal["publish", "fail"] = "publish"
    """After failed branches: publish the complete trees, or publish nothing."""

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.mode == "batch" and (self.task_runner != "threads" or self.tracking == "branch"):
            raise ValueError('mode = "batch" asks level by level, in one process; leave task_runner and tracking out')
        if self.mode == "direct" and not self.wait:
            raise ValueError('wait = false (--no-wait) is for mode = "batch"; leave it out, or set that mode')
        return self
