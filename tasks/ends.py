"""How flow runs end: what a killed one leaves open is closed, and a suspended one asks no more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.states import Crashed

_PAGE = 200
_LOOK_EVERY_S = 0.5
_DRAIN_LIMIT_S = 10.0
_OPEN = TaskRunFilter(
    state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
)


async def close_after_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:  # noqa: ARG001 - as called
    """Close what a killed flow run left open; a hook that the worker runs before it is done with the run."""
    await close_task_runs(flow_run.id)


async def close_task_runs(flow_run_id: UUID) -> int:
    """Mark as crashed the task runs that a process which is gone left open; return how many."""
    async with get_client() as client:
        left = await _read_open(client, flow_run_id)
        for each in left:
            await client.set_task_run_state(each.id, Crashed(message="Its process is gone."), force=True)
    return len(left)


async def _read_open(client: PrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    found: list[TaskRun] = []
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while page := await client.read_task_runs(
        flow_run_filter=of_run, task_run_filter=_OPEN, limit=_PAGE, offset=len(found)
    ):
        found += page
    return found


async def send_events() -> None:
    """Send what this process has told Prefect so far, or a heartbeat may come after the end that it precedes."""
    sending = threading.Thread(
        target=EventsWorker.instance().wait_until_empty, daemon=True
    )  # for ever, if that is gone
    sending.start()
    await asyncio.to_thread(sending.join, _DRAIN_LIMIT_S)


@asynccontextmanager
async def ended_by_suspension(tell: Callable[[], None]) -> AsyncIterator[None]:
    """Once somebody suspends the flow run, `tell` it, cancel what is in here, and end that as Prefect does."""
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    request, task = context.flow_run_suspension_request, cast("asyncio.Task[None]", asyncio.current_task())

    async def look() -> None:
        while not request.is_requested():  # noqa: ASYNC110 - Prefect has no event for it
            await asyncio.sleep(_LOOK_EVERY_S)
        tell()
        task.cancel()

    looking = asyncio.create_task(look())
    try:
        yield
    except asyncio.CancelledError:
        if request.is_requested():
            task.uncancel()
            request.raise_if_requested()
        raise
    finally:
        looking.cancel()
