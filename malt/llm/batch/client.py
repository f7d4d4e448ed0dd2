"""Patience with a provider's batch API: calls that fail for now are made again, and no batch is handed in twice."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from malt.config.roles import ModelSpec
from malt.errors import ConfigError, EndpointDown, MaltError, RunStopped
from malt.llm.batch import api
from malt.llm.batch.api import GONE, MARK, ItemResult, RemoteBatch
from malt.llm.faults import RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.provider.errors import classify_error, name_endpoint, translate_error
from malt.llm.provider.routing import Route, find_route
from malt.llm.rate_limit.policy import PATIENT, Policy
from malt.llm.store.batches import Batch

T = TypeVar("T")

_LOOK_PATIENCE_S = 3600.0
"""Seconds for which polling a batch may fail: it goes on at the provider meanwhile."""
_CLOCK_SKEW_S = 3600.0
"""Seconds before the recorded time from which a batch is searched for."""


async def _find_nothing() -> None:
    """Return nothing."""


class Gone(Exception):  # noqa: N818 - an answer, not an error
    """The provider knows no such thing: 404."""


class BatchClient:
    """Calls to one model's batch API, retried.

    All methods raise `ConfigError` for a wrong key or an address without a batch API, and `EndpointDown` when what
    they need stays away too long: two minutes as a rule, 20 s where nobody has listened yet, 15 minutes of nothing but
    429, an hour for a look. Before each call `check` may raise, where the run has stopped.
    """

    def __init__(self, model: ModelSpec, policy: Policy = PATIENT, check: Callable[[], None] = lambda: None) -> None:
        self.model = model
        self._policy = policy
        self._check = check

    async def upload(self, lines: bytes) -> str:
        try:
            return await self._patiently(lambda route: api.upload(self.model, route, lines))
        except Gone:
            raise self._no_batches() from None

    async def create(self, file_id: str, mark: str) -> RemoteBatch:
        """Make a batch of a file, once: where its making is in doubt, it is looked for before it is tried again.

        Raises `ConfigError` where it was refused. All else that is raised leaves it in doubt.
        """
        look_first = partial(self.find, mark, time.time())
        try:
            return await self._patiently(lambda route: api.create(self.model, route, file_id, mark), again=look_first)
        except Gone:
            raise self._no_batches() from None

    async def look(self, batch: Batch) -> RemoteBatch:
        """Return how a batch is. Raises `RunStopped` where the provider does not know one that may not be over."""
        batch_id = batch.batch_id or ""
        try:
            return await self._patiently(lambda route: api.look(self.model, route, batch_id), _LOOK_PATIENCE_S)
        except Gone:
            if not batch.is_over:
                raise RunStopped(self._unknown(batch)) from None
            return RemoteBatch(batch_id, GONE)

    async def find(self, mark: str, since: float) -> RemoteBatch | None:
        """Look for a batch whose making was tried at a time in seconds since the epoch; None where it was not made.

        Raises `RunStopped` where the provider does not list its batches.
        """
        since -= _CLOCK_SKEW_S
        try:
            return await self._patiently(lambda route: api.find(self.model, route, mark, since))
        except (Gone, ConfigError) as refused:
            raise RunStopped(
                f"{str(refused) or f'{name_endpoint(self.model)} lists no batches (404)'}; so whether batch {mark} was "
                f"made there is in doubt. Look there for one with {MARK} = {mark} in its metadata, cancel it if "
                f"there is one, let it go with: malt batches --forget {mark}, and run again"
            ) from None

    async def results(self, remote: RemoteBatch) -> list[ItemResult]:
        """Return what came of a batch's items, answers first; files that are gone have none."""
        found: list[ItemResult] = []
        for file in remote.files:
            try:
                found += await self._patiently(lambda route, file=file: api.read(self.model, route, file))  # type: ignore[misc]
            except Gone:
                continue
        return sorted(found, key=lambda result: result.status != api.ANSWERED)

    def _no_batches(self) -> ConfigError:
        return ConfigError(
            f'{name_endpoint(self.model)} has no batch API (404); set run.mode = "direct", or check api_base'
        )

    def _unknown(self, batch: Batch) -> str:
        key = batch.api_key_env or "the environment"
        since = datetime.fromtimestamp(batch.planned_at, UTC)
        return (
            f"{name_endpoint(self.model)} does not know batch {batch.batch_id} (404), handed in {since:%Y-%m-%d %H:%M} "
            f"UTC; is the key in {key} of another project? Set the one that it was handed in with, and run again; "
            f"or let it go with: malt batches --forget {batch.batch_id}, and its items are paid for again"
        )

    async def _patiently(
        self,
        call: Callable[[Route], T],
        at_least_s: float = 0.0,
        again: Callable[[], Awaitable[T | None]] = _find_nothing,
    ) -> T:
        """Make a blocking call until it is answered, or `again`, asked before each further one, has the answer."""
        route, started, failures = await find_route(self.model), time.monotonic(), 0
        while True:
            self._check()
            try:
                answer = await asyncio.to_thread(call, route)
            except MaltError:
                raise
            except Exception as error:
                fault = self._fault(error, route)
            else:
                route.has_batches = True
                return answer
            failures += 1
            wait_s, patience_s = self._wait_s(fault, failures), max(at_least_s, self._patience_s(fault, route))
            waited_s = time.monotonic() - started
            if waited_s + wait_s > patience_s:
                raise EndpointDown(
                    f"{fault}; no better answer for {waited_s:.0f} s. What was handed in goes on there: run again "
                    "when the endpoint is up"
                )
            await asyncio.sleep(wait_s)
            if (found := await again()) is not None:
                return found

    def _patience_s(self, fault: RateLimited | Unavailable, route: Route) -> float:
        if isinstance(fault, RateLimited):
            return self._policy.limited_after_s
        is_new = isinstance(fault, Unreachable) and not route.has_batches
        return self._policy.never_up_after_s if is_new else self._policy.down_after_s

    def _fault(self, error: Exception, route: Route) -> RateLimited | Unavailable:
        """Return what passes; raise what does not."""
        if getattr(error, "status_code", None) == 404:
            raise Gone from None
        fault = classify_error(translate_error(error, route), self.model, route)
        if isinstance(fault, RateLimited | Unavailable):
            return fault
        raise ConfigError(str(fault)) if isinstance(fault, Rejected) else fault from None

    def _wait_s(self, fault: RateLimited | Unavailable, failures: int) -> float:
        if isinstance(fault, RateLimited) and fault.retry_after_s:
            return self._policy.pause_for_s(failures, fault.retry_after_s)
        return self._policy.backoff_after_s(failures)
