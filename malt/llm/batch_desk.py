"""Patience with a provider's batch API: calls that fail for now are made again, and no batch is handed in twice."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import TypeVar

from malt.errors import ConfigError, EndpointDown, MaltError
from malt.llm import batch_api
from malt.llm.batch_api import Job, Result
from malt.llm.faults import RateLimited, Rejected, Unavailable, Unreachable
from malt.llm.gateway import Way, way_to
from malt.llm.meaning import meaning_of, place_of
from malt.llm.pace import PATIENT, Policy
from malt.spec import ModelSpec

T = TypeVar("T")

LOOK_PATIENCE_S = 3600.0
"""How long looking at a batch may fail: it goes on at the provider, whatever is between here and there."""
CLOCKS_DIFFER_S = 3600.0
"""How far back a batch is looked for before the time at which it was written down."""


class Gone(Exception):  # noqa: N818 - an answer, not an error
    """The provider knows no such thing: 404."""


class BatchDesk:
    """Where batches for one model are handed in.

    All methods raise `ConfigError` for a wrong key or an address without a batch API, and `EndpointDown` when what
    they need stays away too long: two minutes as a rule, 20 s where nobody listens, an hour for a look.
    """

    def __init__(self, model: ModelSpec, policy: Policy = PATIENT) -> None:
        self.model = model
        self._policy = policy

    async def hand_in(self, lines: bytes, mark: str) -> Job:
        """Upload items and make a batch of them, once: where its making is in doubt, it is looked for first."""
        try:
            file_id = await self._patiently(lambda way: batch_api.upload(self.model, way, lines))
            return await self._create(file_id, mark, time.time())
        except Gone:
            raise ConfigError(
                f'{place_of(self.model)} has no batch API (404); set run.mode = "direct", or check api_base'
            ) from None

    async def look(self, batch_id: str) -> Job:
        """Return how a batch is; one that the provider no longer knows has expired."""
        try:
            return await self._patiently(lambda way: batch_api.look(self.model, way, batch_id), LOOK_PATIENCE_S)
        except Gone:
            return Job(batch_id, "expired")

    async def find(self, mark: str, since: float) -> Job | None:
        """Return the batch with this mark, made since a time in seconds since the epoch; None where none is listed."""
        try:
            return await self._patiently(lambda way: self._listed(way, mark, since))
        except Gone:  # some servers list nothing
            return None

    async def results(self, job: Job) -> list[Result]:
        """Return what came of a batch's items, answers first; files that are gone have none."""
        found: list[Result] = []
        for file in job.files:
            try:
                found += await self._patiently(lambda way, file=file: batch_api.read(self.model, way, file))  # type: ignore[misc]
            except Gone:
                continue
        return sorted(found, key=lambda result: result.status != batch_api.ANSWERED)

    async def _create(self, file_id: str, mark: str, since: float) -> Job:
        tried = False

        def create(way: Way) -> Job:
            nonlocal tried
            if tried and (job := self._listed(way, mark, since)):
                return job
            tried = True
            return batch_api.create(self.model, way, file_id, mark)

        return await self._patiently(create)

    def _listed(self, way: Way, mark: str, since: float) -> Job | None:
        return batch_api.find(self.model, way, mark, since - CLOCKS_DIFFER_S)

    async def _patiently(self, call: Callable[[Way], T], at_least_s: float = 0.0) -> T:
        """Make a blocking call until it is answered."""
        way, started, failures = await way_to(self.model), time.monotonic(), 0
        while True:
            try:
                return await asyncio.to_thread(call, way)
            except MaltError:
                raise
            except Exception as error:
                fault = self._fault(error, way)
            failures += 1
            wait_s, patience_s = self._wait_s(fault, failures), max(at_least_s, self._patience_s(fault))
            if time.monotonic() + wait_s - started > patience_s:
                raise EndpointDown(
                    f"{fault}; no better answer for {patience_s:g} s. What was handed in goes on there: run again "
                    "when the endpoint is up"
                )
            await asyncio.sleep(wait_s)

    def _patience_s(self, fault: RateLimited | Unavailable) -> float:
        if isinstance(fault, RateLimited):
            return self._policy.limited_after_s
        return self._policy.never_up_after_s if isinstance(fault, Unreachable) else self._policy.down_after_s

    def _fault(self, error: Exception, way: Way) -> RateLimited | Unavailable:
        """Return what passes; raise what does not."""
        if getattr(error, "status_code", None) == 404:
            raise Gone from None
        fault = meaning_of(batch_api.known(error, way), self.model, way)
        if isinstance(fault, RateLimited | Unavailable):
            return fault
        raise ConfigError(str(fault)) if isinstance(fault, Rejected) else fault from None

    def _wait_s(self, fault: RateLimited | Unavailable, failures: int) -> float:
        if isinstance(fault, RateLimited) and fault.retry_after_s:
            return fault.retry_after_s
        longest = min(self._policy.backoff_max_s, self._policy.backoff_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
