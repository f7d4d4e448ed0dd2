"""Start and end of flow runs: the dataset's lock, signals, suspension, and open task runs of killed processes.

However a flow run ends, its requests have ended before the next run gets the lock: a cancelled or suspended run stops
asking, and task runs that a killed process left open are closed.
"""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
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
from prefect.client.schemas.objects import FlowRun, State, StateDetails, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Crashed, Running

from malt.config.settings import Settings
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.client.session import stop_sessions
from tasks.artifacts import leave

logging.getLogger("malt").addHandler(APILogHandler())  # as PREFECT_LOGGING_EXTRA_LOGGERS would
_is_stopping = threading.Event()
"""Set once the flow run of this process was asked to stop."""

_CONSEQUENCES = tuple(f"Finished in state {state}" for state in ("Cancelled", "NotReady", "Pending", "Suspended"))


def _is_own_end(record: logging.LogRecord) -> bool:
    """Return False for log lines on task runs that could not begin, or that ended because their run was stopped."""
    message = record.getMessage()
    return not message.startswith("Finished in state" if _is_stopping.is_set() else _CONSEQUENCES)


for _name in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(_is_own_end)


@asynccontextmanager
async def only_run_of(dataset: str) -> AsyncIterator[str]:
    """Hold a dataset's lock; yield the run's name in the store."""
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{(flow_run.id or '')[:8]}"  # names sort by time
    _is_stopping.clear()
    if deployment.id:  # the run may be a retry after its earlier process was killed
        await leave(close_task_runs(UUID(flow_run.id)))
    who = f"flow run {flow_run.name} ({(flow_run.id or '')[:8]})"
    async with ended_by_suspension(), hold_run_lock(dataset, Settings(), who, show_wait):
        with cancelled_by_sigterm():
            try:
                yield run
            except (asyncio.CancelledError, TerminationSignal):
                _is_stopping.set()
                raise
            finally:
                await asyncio.to_thread(stop_sessions, run)
                await send_events()


async def show_wait(holder: str | None) -> None:
    """Set the flow run's state to `Waiting` with its holder, or back to `Running` for None."""
    own = FlowRunContext.get()
    state = own.flow_run.state if own and own.flow_run else None
    lease = state and state.state_details.deployment_concurrency_lease_id  # without it the run would lose its slot
    label: dict[str, Any] = {} if holder is None else {"name": "Waiting", "message": f"for {holder}"}
    running: State[None] = Running(state_details=StateDetails(deployment_concurrency_lease_id=lease), **label)
    async with get_client() as client:
        await leave(client.set_flow_run_state(UUID(flow_run.id), running))


@contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """Cancel the current asyncio task on SIGTERM.

    Prefect's own handler has to stay, or *Cancel* would count as a crash; but it raises wherever the event loop happens
    to be: in a single branch, say, while all others go on.
    """
    if threading.current_thread() is not threading.main_thread():  # such as in `malt run`, which cancels flows itself
        yield
        return
    task = cast("asyncio.Task[None]", asyncio.current_task())

    def cancel(signals: bytes) -> None:
        if signal.SIGTERM in signals and not task.cancelling():
            _is_stopping.set()
            task.cancel()

    with seen_signals(cancel):
        yield


@contextmanager
def seen_signals(look: Callable[[bytes], None]) -> Iterator[None]:
    """Call `look` in the running event loop with the numbers of arriving signals; their handlers run too."""
    loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        loop.add_reader(ours, lambda: look(ours.recv(1024)))
        try:
            yield
        finally:
            loop.remove_reader(ours)
            signal.set_wakeup_fd(before)


_PAGE = 200
_LOOK_EVERY_S = 0.5
_DRAIN_LIMIT_S = 10.0
_OPEN = TaskRunFilter(
    state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
)


async def close_after_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:  # noqa: ARG001 - as called
    """Close task runs that a killed flow run left open; a hook that the worker calls when a run has crashed."""
    await close_task_runs(flow_run.id)


async def close_task_runs(flow_run_id: UUID) -> int:
    """Mark the open task runs of a process that no longer exists as crashed; return their number."""
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
    """Send all queued events now: a heartbeat that arrived after the run's end would be out of order."""
    wait = EventsWorker.instance().wait_until_empty  # never returns if the server is gone
    sending = threading.Thread(target=wait, daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, _DRAIN_LIMIT_S)


@asynccontextmanager
async def ended_by_suspension() -> AsyncIterator[None]:
    """Cancel the current asyncio task once the flow run is suspended, and then raise what Prefect raises for that."""
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    request, task = context.flow_run_suspension_request, cast("asyncio.Task[None]", asyncio.current_task())

    async def look() -> None:
        while not request.is_requested():  # noqa: ASYNC110 - Prefect has no event for it
            await asyncio.sleep(_LOOK_EVERY_S)
        _is_stopping.set()
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
