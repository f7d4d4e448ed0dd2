"""What the server asks for by itself, by the triggers in prefect.yaml: to tell of failed runs, to mark dead ones."""

from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed
from prefect.variables import Variable

ALERTS = "malt_alerts"
"""Prefect variable that names the notification block to tell, as TYPE/NAME: `slack-webhook/team`."""


@flow(name="notify")
async def notify(resource: str) -> None:
    """Tell of a run that failed: in the log, and to the block that the variable `malt_alerts` names.

    Args:
        resource: The run, as events name it: prefect.flow-run.ID.
    """
    run = await flow_run(resource)
    state = run.state
    message = f"{run.name}: {state.name if state else 'unknown'}: {state.message if state else ''}"
    get_run_logger().warning("%s", message)
    if named := await Variable.aget(ALERTS):
        block = cast("NotificationBlock", await Block.aload(str(named)))
        await block.notify(message, subject=f"MALT: {run.name}")


@flow(name="mark-crashed")
async def mark_crashed(resource: str) -> None:
    """Mark a run as crashed whose heartbeat has stopped, so that it can be retried and its place is free.

    Args:
        resource: The run, as events name it: prefect.flow-run.ID.
    """
    run = await flow_run(resource)
    if run.state is None or not run.state.is_running():
        return
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Crashed(message="No sign of life: its process or machine is gone."))
    get_run_logger().warning("%s is marked as crashed", run.name)


async def flow_run(resource: str) -> FlowRun:
    """Read a run from the server."""
    async with get_client() as client:
        return await client.read_flow_run(UUID(resource.removeprefix("prefect.flow-run.")))
