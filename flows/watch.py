"""What the server asks for by itself, by the triggers in prefect.yaml: to tell of failed runs, to mark dead ones."""

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
"""Prefect variable that names the notification block to tell, as TYPE/NAME: `slack-webhook/team`."""


@flow(name="notify", flow_run_name="{state}: {run}")
async def notify(resource: str, run: str, state: str, message: str | None = None) -> None:
    """Tell of a run that failed: in the log, and to the block that the variable `malt_alerts` names.

    Args:
        resource: The run, as events name it: prefect.flow-run.ID.
        run: Its name.
        state: The state that it got into, whatever came of it since.
        message: What that state says.
    """
    told = f"{run}: {state}: {message or 'no reason given'}\n{url_for('flow-run', id_of(resource)) or ''}".strip()
    get_run_logger().warning("%s", told)
    if named := await Variable.aget(ALERTS):
        block = cast("NotificationBlock", await Block.aload(str(named)))
        await block.notify(told, subject=f"MALT: {run}: {state}")


@flow(name="mark-crashed", flow_run_name="{resource}")
async def mark_crashed(resource: str, silence_s: float = 90.0) -> None:
    """Mark a run as crashed that was not heard of for so long, so that it can be retried, and close its task runs.

    Args:
        resource: The run, as events name it: prefect.flow-run.ID.
        silence_s: Seconds since its start and since its last heartbeat, of which one comes every 30.
    """
    silent_since = datetime.now(UTC) - timedelta(seconds=silence_s)
    async with get_client() as client:
        run = await client.read_flow_run(id_of(resource))
        if run.state is None or not run.state.is_running() or await was_heard_of(run, silent_since):
            return
        await client.set_flow_run_state(run.id, Crashed(message="No sign of life: its process or machine is gone."))
    closed = await close_task_runs(run.id)
    get_run_logger().warning("%s is marked as crashed, and %s task runs of it", run.name, closed)


async def was_heard_of(run: FlowRun, since: datetime) -> bool:
    """Whether a run began or sent a heartbeat meanwhile: a server under load hears of that late."""
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
    """Return the id of a run that events name so."""
    return UUID(resource.removeprefix("prefect.flow-run."))
