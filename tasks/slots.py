"""Prefect's global concurrency limits: limits set in the UI bound all runs of a server together."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple, ParamSpec, TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.errors import PrefectLost
from tasks.artifacts import TIMEOUT_S
from tasks.run_lock import show_wait

TRAINING = "malt-training"
"""Name of the limit on concurrent trainings; each training takes one slot."""
_MOST_LIMITS = 200
_POLL_S = 2.0
_NO_ROOM = (HTTPStatus.LOCKED, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Status codes if other runs took the slots first, or if the limit was lowered meanwhile."""
P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def share_endpoints(spec: RunSpec, models: Iterable[ModelSpec]) -> AsyncIterator[RunSpec]:
    """Hold a slot of these models' limits for each request in flight; yield the spec limited to those slots."""
    async with hold_slots((limit_name(each.model) for each in models), spec.limits.max_in_flight) as most:
        yield spec.model_copy(update={"limits": spec.limits.model_copy(update={"max_in_flight": most})})


def limit_name(model: str) -> str:
    """Return the name of a model's limit in the UI, which refuses slashes: `malt-openai-gpt-4o`."""
    return f"malt-{re.sub('[^a-z0-9.]+', '-', model.lower()).strip('-')}"


@asynccontextmanager
async def hold_slots(names: Iterable[str], wanted: int) -> AsyncIterator[int]:
    """Hold slots of the existing limits of these names; yield their number: as many as wanted, or a whole limit.

    A waiting run reads the limits again at each attempt: they may be raised, lowered or removed meanwhile. A limit of 0
    admits no run. Raises `PrefectLost` if the server cannot answer for a while.
    """
    known, is_waiting = frozenset(names), False
    async with AsyncExitStack() as held:
        while (room := await _ask(_find_room, known, wanted)).full or not await _ask(_take, room, held):
            if room.full and not is_waiting:
                await show_wait(f"room for {room.slots} in the concurrency limit {', '.join(room.full)}")
                is_waiting = True
            await asyncio.sleep(_POLL_S)
        if is_waiting:
            await show_wait(None)
        yield room.slots


class _Room(NamedTuple):
    """Slots that a run may take of some limits now."""

    limits: list[str]
    full: list[str]
    slots: int
    """Slots to take of each limit; at least one, so that a limit of 0 is full."""


async def _find_room(names: frozenset[str], wanted: int) -> _Room:
    """Read the active limits of these names, ignoring case."""
    async with get_client() as client:
        found = await client.read_global_concurrency_limits(_MOST_LIMITS)
    limits = [each for each in found if each.active and each.name.lower() in names]
    slots = max(1, min([wanted, *(each.limit for each in limits)]))
    full = [each.name for each in limits if each.active_slots + slots > each.limit]
    return _Room([each.name for each in limits], full, slots)


async def _take(room: _Room, held: AsyncExitStack) -> bool:
    """Take slots of all limits, or of none if there is no room any more; `held` gives them back."""
    try:
        await held.enter_async_context(concurrency(room.limits, room.slots, max_retries=0))
    except ConcurrencySlotAcquisitionError as refusal:
        cause = refusal.__cause__
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code in _NO_ROOM:
            return False
        raise cause or refusal from None
    return True


async def _ask(request: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a request to Prefect's server; retry for a while if it cannot answer, but not if it refuses."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return await request(*args, **kwargs)
        except httpx.HTTPError as error:
            is_refusal = isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error
            if is_refusal or time.monotonic() > until:
                raise PrefectLost(
                    f"Prefect's server does not answer about the concurrency limits of this run: {error}; "
                    "run again once it does"
                ) from error
        await asyncio.sleep(_POLL_S)
