"""Flows that triggers in prefect.yaml start: `notify` reports failed runs, `mark-crashed` closes dead ones."""

from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import Crashed
from prefect.utilities.urls import url_for
from prefect.variables import Variable

from tasks.run_lock import close_task_runs

ALERTS = "malt_alerts"
"""Prefect variable with the notification block to use, as TYPE/NAME: `slack-webhook/team`."""


@flow(name="notify", flow_run_name="{state}: {run}")
async def notify(resource: str, run: str, state: str, message: str | None = None) -> None:
    """Report a failed run: in the log, and through the block that the variable `malt_alerts` names.

    Args:
        resource: Resource id of the run in events: prefect.flow-run.ID.
        run: Name of the run.
        state: State at the time of the event; the run's state may have changed since.
        message: Message of that state.
    """
    report = f"{run}: {state}: {message or 'no reason given'}\n{url_for('flow-run', id_of(resource)) or ''}".strip()
    get_run_logger().warning("%s", report)
    if named := await Variable.aget(ALERTS):
        block = cast("NotificationBlock", await Block.aload(str(named)))
        await block.notify(report, subject=f"MALT: {run}: {state}")


@flow(name="mark-crashed", flow_run_name="{resource}")
async def mark_crashed(resource: str, silence_s: float = 90.0) -> None:
    """Mark a run without heartbeats as crashed, so that it can be retried, and close its task runs.

    Args:
        resource: Resource id of the run in events: prefect.flow-run.ID.
        silence_s: Seconds since its start and since its last heartbeat; a live run sends one every 30 seconds.
    """
    silent_since = datetime.now(UTC) - timedelta(seconds=silence_s)
    async with get_client() as client:
        run = await client.read_flow_run(id_of(resource))
        if run.state is None or not run.state.is_running() or await was_heard_of(run, silent_since):
            return
        await client.set_flow_run_state(run.id, Crashed(message="No sign of life: its process or machine is gone."))
    closed = await close_task_runs(run.id)
    get_run_logger().warning("%s and %s of its task runs were marked as crashed", run.name, closed)


async def was_heard_of(run: FlowRun, since: datetime) -> bool:
    """Whether a run started or sent a heartbeat since then; a loaded server may learn of that late."""
    if run.state is not None and run.state.timestamp > since:
        return True
    heard = EventFilter(
        occurred=EventOccurredFilter(since=since),
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    async with get_client() as client:
        return bool((await client.read_events(heard, limit=1)).events)


def id_of(resource: str) -> UUID:
    """Return the id of a run from its resource id in events."""
    return UUID(resource.removeprefix("prefect.flow-run."))
