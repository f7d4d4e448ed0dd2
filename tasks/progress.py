"""Progress under Prefect: one artifact that moves while trees grow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from tasks.telling import told

EVERY_S = 5.0
"""How often it moves; each time is one request to the server."""


@asynccontextmanager
async def progress(dataset: str, expected: int, answers: Callable[[], int]) -> AsyncIterator[None]:
    """Show how many of the expected completions there are, new and stored, for as long as the block lasts."""

    def percent() -> float:
        return min(100.0, 100.0 * answers() / expected)

    def words() -> str:
        return f"{answers():,} of {expected:,} completions"

    async def move() -> None:
        if artifact is not None:
            await told(aupdate_progress_artifact(artifact, percent(), words()))

    async def keep_moving() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await move()

    artifact = await told(acreate_progress_artifact(percent(), key=f"{dataset}-progress", description=words()))
    moving = asyncio.create_task(keep_moving())
    try:
        yield
    finally:
        moving.cancel()
        with suppress(asyncio.CancelledError):
            await moving
        await move()
