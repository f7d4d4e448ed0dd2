"""Flow `rerun`: newest version -> answers of some questions and roles -> new version. Asks for missing ones, or all."""

import asyncio
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from pydantic import Field

from flows.generate import BRANCHES_AT_ONCE, grow_and_publish
from malt.config.roles import Role
from malt.engine.build import RunSummary
from malt.engine.job import read_job
from malt.engine.run import Run
from malt.engine.runner import choose_questions, read_declared, set_aside
from malt.errors import ConfigError
from malt.llm.client.completers import EVERY_ROLE
from tasks.artifacts import tag_by_spec
from tasks.run_lock import close_after_crash, only_run_of

Name = Annotated[str, Field(pattern="^[a-z0-9-]+$")]


@flow(name="rerun", flow_run_name="rerun {name}", task_runner=BRANCHES_AT_ONCE, on_crashed=[close_after_crash])
async def rerun(
    name: Name,
    questions: tuple[str, ...] = (),
    roles: tuple[Role, ...] = (),
    refresh: bool = False,
    config: str = "",
) -> State[RunSummary]:
    """Ask again for part of a dataset, and publish a new version.

    Args:
        name: Name of the dataset.
        questions: Ids of questions, as in questions.parquet. Empty: all.
        roles: Roles to ask. Empty: all.
        refresh: Set stored answers of these roles aside and ask again, and later roles where their prompts change.
            Off: ask only for what is missing.
        config: Path of the TOML file on the worker that declares the dataset. Empty: its newest version declares it.
    """
    async with only_run_of(name) as run:
        job = read_job(read_declared(name, Path(config) if config else None))
        await tag_by_spec(job.spec)
        chosen = choose_questions(job.questions, questions)
        if refresh:
            count = await asyncio.to_thread(set_aside, job.only(chosen), roles or EVERY_ROLE, asked_at())
            get_run_logger().info("%s: %s answers set aside, to be asked for again", name, f"{count:,}")
        asks = frozenset(roles) if roles and not refresh else EVERY_ROLE
        return await grow_and_publish(job, chosen, Run(run, asks))


def asked_at() -> float:
    """Return when this flow run was created, in seconds since the epoch; a retry has the same time."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.created is None:
        raise ConfigError("refresh needs a flow run whose creation time Prefect knows")
    return context.flow_run.created.timestamp()
