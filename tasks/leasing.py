"""The lease under Prefect: a run's log says what it waits for, and names runs as the UI does.

However a flow run ends, what it asked has ended before the next one may begin.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from malt.interruption import on_signal
from malt.llm.lease import lease
from malt.llm.session import stop_sessions
from malt.settings import Settings

logging.getLogger("malt").addHandler(APILogHandler())  # as PREFECT_LOGGING_EXTRA_LOGGERS would


@asynccontextmanager
async def alone(dataset: str) -> AsyncIterator[str]:
    """Be the only flow run that grows a dataset, once those before this one have ended; the name it asks under."""
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{(flow_run.id or '')[:8]}"  # names sort by time
    async with lease(dataset, Settings(), f"flow run {flow_run.name} ({(flow_run.id or '')[:8]})"):
        with cancelled_by_sigterm():
            try:
                yield run
            finally:
                await asyncio.to_thread(stop_sessions, run)


@contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """Cancel the task that is in here where SIGTERM comes, then raise what Prefect's own handler would have raised.

    That one raises it wherever the loop happens to stand: in one branch, say, while all others go on.
    """
    loop, task, came = asyncio.get_running_loop(), asyncio.current_task(), False

    def cancel() -> None:
        nonlocal came
        if task is not None and not came:
            came = True
            loop.call_soon_threadsafe(task.cancel)

    with on_signal(cancel, signal.SIGTERM):
        try:
            yield
        except asyncio.CancelledError:
            if came:
                raise TerminationSignal(signal.SIGTERM) from None
            raise
