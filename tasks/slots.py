"""Prefect's global concurrency limits: what people set in the UI bounds all runs of a server together."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.errors import PrefectLost
from tasks.artifacts import TIMEOUT_S
from tasks.run_lock import show_wait

TRAINING = "malt-training"
"""Limit of trainings at once, of which each takes one slot."""
_MOST_LIMITS = 200
_POLL_S = 2.0


@asynccontextmanager
async def share_endpoints(spec: RunSpec, models: Iterable[ModelSpec]) -> AsyncIterator[RunSpec]:
    """Hold a slot for each request that a run may have in flight, of the limits of these models; yield what it may."""
    async with hold_slots((limit_name(each.model) for each in models), spec.limits.max_in_flight) as most:
        yield spec.model_copy(update={"limits": spec.limits.model_copy(update={"max_in_flight": most})})


def limit_name(model: str) -> str:
    """Return the name that the limit of a model has in the UI, where slashes are refused: `malt-openai-gpt-4o`."""
    return f"malt-{re.sub('[^a-z0-9.]+', '-', model.lower()).strip('-')}"


@asynccontextmanager
async def hold_slots(names: Iterable[str], wanted: int) -> AsyncIterator[int]:
    """Hold slots of the limits of these names that are there; yield how many: as many as wanted, or a whole limit.

    Whoever waits reads the limits again: they may be raised, lowered or removed meanwhile. One of 0 lets nobody in.
    """
    known, told = frozenset(names), False
    async with AsyncExitStack() as held:
        room = await _find_room(known, wanted)
        while room.full or not await _take(room, held):
            if room.full and not told:
                await show_wait(f"room for {room.slots} in the concurrency limit {', '.join(room.full)}")
                told = True
            await asyncio.sleep(_POLL_S)
            room = await _find_room(known, wanted)
        if told:
            await show_wait(None)
        yield room.slots


class _Room(NamedTuple):
    """What a run may take of some limits at the moment."""

    limits: list[str]
    full: list[str]
    slots: int
    """Of each; at least one, which a limit of 0 has no room for."""


async def _find_room(names: frozenset[str], wanted: int) -> _Room:
    limits = await _find_limits(names)
    slots = max(1, min([wanted, *(each.limit for each in limits)]))
    full = [each.name for each in limits if each.active_slots + slots > each.limit]
    return _Room([each.name for each in limits], full, slots)


async def _take(room: _Room, held: AsyncExitStack) -> bool:
    """Take slots of all limits, or none, where others were quicker; `held` gives them back."""
    try:
        await held.enter_async_context(concurrency(room.limits, room.slots, max_retries=0))
    except ConcurrencySlotAcquisitionError as refusal:
        if not isinstance(refusal.__cause__, httpx.HTTPError):
            raise
        return False
    return True


async def _find_limits(names: frozenset[str]) -> list[GlobalConcurrencyLimitResponse]:
    """Return the limits that are on and have these names, in whatever case. Raises `PrefectLost`."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            async with get_client() as client:
                limits = await client.read_global_concurrency_limits(_MOST_LIMITS)
            return [each for each in limits if each.active and each.name.lower() in names]
        except httpx.HTTPError as error:
            if time.monotonic() > until:
                raise PrefectLost(
                    f"Prefect's server does not say which concurrency limits bound this run: {error}; "
                    "run again once it does"
                ) from error
        await asyncio.sleep(_POLL_S)
