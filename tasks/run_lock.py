"""The dataset's lock under Prefect: a run's log says what it waits for, and names runs as the UI does.

However a flow run ends, what it asked has ended before the next one may begin.
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

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateDetails
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Running

from malt.config.settings import Settings
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.client.session import stop_sessions
from tasks.artifacts import leave
from tasks.ends import close_task_runs, ended_by_suspension, send_events

logging.getLogger("malt").addHandler(APILogHandler())  # as PREFECT_LOGGING_EXTRA_LOGGERS would
_is_stopping = threading.Event()
"""Whether the flow run of this process was told to end."""

_FOLLOWING = tuple(f"Finished in state {state}" for state in ("Cancelled", "NotReady", "Pending", "Suspended"))


def _is_own_end(record: logging.LogRecord) -> bool:
    """Leave out what only follows: how task runs end that could not begin, and those of a run that is stopped."""
    said = record.getMessage()
    return not said.startswith("Finished in state" if _is_stopping.is_set() else _FOLLOWING)


for _name in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(_is_own_end)


@asynccontextmanager
async def only_run_of(dataset: str) -> AsyncIterator[str]:
    """Hold a dataset's lock; yield the name that the run asks under."""
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{(flow_run.id or '')[:8]}"  # names sort by time
    _is_stopping.clear()
    if deployment.id:  # it may be retried or resumed, and the process that it had before was killed
        await leave(close_task_runs(UUID(flow_run.id)))
    who = f"flow run {flow_run.name} ({(flow_run.id or '')[:8]})"
    async with ended_by_suspension(_is_stopping.set), hold_run_lock(dataset, Settings(), who, show_wait):
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
    """Let the flow run's state say what it waits for, and once that is over."""
    own = FlowRunContext.get()
    state = own.flow_run.state if own and own.flow_run else None
    lease = state and state.state_details.deployment_concurrency_lease_id  # else its slot of the limit is given up
    told: dict[str, Any] = {} if holder is None else {"name": "Waiting", "message": f"for {holder}"}
    running: State[None] = Running(state_details=StateDetails(deployment_concurrency_lease_id=lease), **told)
    async with get_client() as client:
        await leave(client.set_flow_run_state(UUID(flow_run.id), running))


@contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """Cancel the task that is in here when SIGTERM comes.

    Prefect's own handler has to stay, or *Cancel* counts as a crash; but it raises wherever the loop happens to stand:
    in one branch, say, while all others go on.
    """
    if threading.current_thread() is not threading.main_thread():  # as under `malt run`, which cancels the flow itself
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
    """Tell the running loop of signals, beside what their handlers do."""
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
