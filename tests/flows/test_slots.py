"""Concurrency limits set in Prefect's UI: runs share them, and show what they wait for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from malt.errors import PrefectLost
from tasks.slots import hold_slots, limit_name

MODEL = limit_name("openai/Tests 4.1")
SHOWN = "malt-openai-Tests-4.1"
"""The limit's name as a user typed it in the UI."""
HANGS_S = 300


@flow
async def hold(ids: asyncio.Queue[str], holds: asyncio.Event, release: asyncio.Event) -> tuple[int, int]:
    """Hold slots until `release`; return how many this run got, and how many were taken in all."""
    ids.put_nowait(str(flow_run.id))
    async with hold_slots([MODEL, "malt-not-there"], 64) as most:
        taken = await read_taken()
        holds.set()
        await release.wait()
        return most, taken


async def read_taken() -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(SHOWN)).active_slots


async def allow(limit: int) -> None:
    async with get_client() as client:
        await client.update_global_concurrency_limit(SHOWN, GlobalConcurrencyLimitUpdate(limit=limit))


async def wait_for_state(flow_run_id: str) -> str:
    async with get_client() as client:
        while True:
            state = (await client.read_flow_run(UUID(flow_run_id))).state
            if state is not None and state.name == "Waiting":
                return str(state.message)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def limit_of_none() -> AsyncIterator[None]:
    async with get_client() as client:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=SHOWN, limit=0))
        try:
            yield
        finally:
            await client.delete_global_concurrency_limit_by_name(SHOWN)


async def run_two_after_each_other() -> None:
    ids, holds, release = asyncio.Queue[str](), asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(HANGS_S), limit_of_none():
        async with asyncio.TaskGroup() as both:
            first = both.create_task(hold(ids, holds, release))
            assert await wait_for_state(await ids.get()) == f"for room for 1 in the concurrency limit {SHOWN}"
            await allow(3)
            await holds.wait()
            second = both.create_task(hold(ids, holds, release))
            assert await wait_for_state(await ids.get()) == f"for room for 3 in the concurrency limit {SHOWN}"
            await allow(2)
            release.set()
        assert [first.result(), second.result()] == [(3, 3), (2, 2)]
        assert await read_taken() == 0


def test_a_run_takes_a_slot_a_request_of_its_models_limit_and_the_next_one_waits(api_url: str) -> None:
    assert MODEL == "malt-openai-tests-4.1"
    asyncio.run(run_two_after_each_other())


def test_a_server_that_does_not_list_its_limits_fails_the_run(api_url: str) -> None:
    async def hold_any() -> None:
        async with hold_slots([MODEL], 1):
            pass

    with (
        temporary_settings({PREFECT_API_URL: f"{api_url}/elsewhere"}),
        pytest.raises(PrefectLost, match="does not answer about the concurrency limits of this run"),
    ):
        asyncio.run(hold_any())
