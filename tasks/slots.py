"""Prefect's global concurrency limits: what people set in the UI bounds all runs of a server together."""

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import concurrency

from malt.config.limits import Limits
from malt.config.spec import RunSpec
from malt.engine.job import models_asked
from tasks.artifacts import leave
from tasks.run_lock import show_wait

TRAINING = "malt-training"
"""Limit of trainings at once, of which each takes one slot."""
_MOST_LIMITS = 200


@asynccontextmanager
async def share_endpoints(spec: RunSpec) -> AsyncIterator[Limits]:
    """Hold a slot for each request that a run may have in flight, of the limits of its models; yield its own limits.

    A run in batch mode holds none: its requests are in flight for up to a day, and load nobody.
    """
    models = [] if spec.run.mode == "batch" else models_asked(spec).values()
    async with hold_slots((limit_name(each.model) for each in models), spec.limits.max_in_flight) as most:
        yield spec.limits.model_copy(update={"max_in_flight": most})


def limit_name(model: str) -> str:
    """Return the name that the limit of a model has in the UI, where slashes are refused: `malt-openai-gpt-4o`."""
    return f"malt-{re.sub('[^a-z0-9.]+', '-', model.lower()).strip('-')}"


@asynccontextmanager
async def hold_slots(names: Iterable[str], wanted: int) -> AsyncIterator[int]:
    """Hold slots of the limits of these names that are there; yield how many: as many as wanted, or a whole limit."""
    found = await _find_limits(frozenset(names))
    most = min([wanted, *(each.limit for each in found)])
    held = [each.name for each in found]
    full = [each.name for each in found if each.active_slots + most > each.limit]
    if full:
        await show_wait(f"{most} slots of the concurrency limit {', '.join(full)}")
    async with concurrency(held, occupy=most):
        if full:
            await show_wait(None)
        yield most


async def _find_limits(names: frozenset[str]) -> list[GlobalConcurrencyLimitResponse]:
    async with get_client() as client:
        limits = await leave(client.read_global_concurrency_limits(_MOST_LIMITS)) or []
    return [each for each in limits if each.active and each.name in names]
