"""newest version -> the questions and roles that are named -> a new version. Asks for what is missing, or all anew."""

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
    """Ask again for part of a dataset, and publish what comes of it.

    Args:
        name: Dataset to ask again for.
        questions: Ids of questions, as questions.parquet has them. Empty: all.
        roles: Roles to ask. Empty: all.
        refresh: Ask the named roles anew even where the store has an answer, which is set aside; the roles after them
            follow. Off: ask for what is missing.
        config: TOML file, as the worker sees it, that declares the dataset. Empty: its newest version does.
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
    """When this flow run was asked for: the same again when it is retried, in seconds since the epoch."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.created is None:
        raise ConfigError("refresh needs a flow run that Prefect knows the beginning of")
    return context.flow_run.created.timestamp()
