"""Progress under Prefect: one artifact that moves while trees grow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from malt.engine.job import Job
from malt.engine.run import Run
from malt.trees.growth import nodes_per_question
from tasks.artifacts import leave

EVERY_S = 5.0
"""How often it moves; each time is one request to the server."""


@asynccontextmanager
async def show_progress(job: Job, run: Run) -> AsyncIterator[None]:
    """Show how many of the expected completions there are, new and stored, for as long as the block lasts."""
    expected = len(job.questions) * sum(nodes_per_question(job.spec).values())

    def percent() -> float:
        return min(100.0, 100.0 * run.tally.answers / expected)

    def describe() -> str:
        return f"{run.tally.answers:,} of {expected:,} completions"

    async def move() -> None:
        if artifact is not None:
            await leave(aupdate_progress_artifact(artifact, percent(), describe()))

    async def keep_moving() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await move()

    key = f"{job.spec.name}-progress"
    artifact = await leave(acreate_progress_artifact(percent(), key=key, description=describe()))
    moving = asyncio.create_task(keep_moving())
    try:
        yield
    finally:
        moving.cancel()
        with suppress(asyncio.CancelledError):
            await moving
        await move()
