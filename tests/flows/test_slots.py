"""Limits that were set in Prefect's UI: runs share them, and say what they wait for."""

import asyncio
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.runtime import flow_run

from tasks.slots import hold_slots, limit_name

MODEL = limit_name("openai/Tests 4.1")


@flow
async def hold(ids: asyncio.Queue[str], holds: asyncio.Event, release: asyncio.Event) -> tuple[int, int]:
    """Return how many slots it was given, and how many were taken then."""
    ids.put_nowait(str(flow_run.id))
    async with hold_slots([MODEL, "malt-not-there"], 64) as most:
        taken = await read_taken()
        holds.set()
        await release.wait()
        return most, taken


async def read_taken() -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(MODEL)).active_slots


async def wait_for_state(flow_run_id: str) -> str:
    async with get_client() as client:
        while True:
            state = (await client.read_flow_run(UUID(flow_run_id))).state
            if state is not None and state.name == "Waiting":
                return str(state.message)
            await asyncio.sleep(0.1)


async def run_two_after_each_other() -> None:
    ids, holds, release = asyncio.Queue[str](), asyncio.Event(), asyncio.Event()
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=MODEL, limit=3))
    first = asyncio.create_task(hold(ids, holds, release))
    await ids.get()
    await holds.wait()
    second = asyncio.create_task(hold(ids, holds, release))
    assert await wait_for_state(await ids.get()) == f"for 3 slots of the concurrency limit {MODEL}"
    release.set()
    assert [await first, await second] == [(3, 3), (3, 3)]
    assert await read_taken() == 0


def test_a_run_takes_a_slot_a_request_of_its_models_limit_and_the_next_one_waits(api_url: str) -> None:
    assert MODEL == "malt-openai-tests-4.1"
    asyncio.run(run_two_after_each_other())
