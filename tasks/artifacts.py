"""Artifacts and tags: what people look at on Prefect's server. No dataset depends on whether the server takes them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect import get_run_logger
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.engine.job import Job, list_models
from malt.engine.run import Run
from malt.hosting.access import AUTH_STRING
from malt.hosting.reports import SANDBOX, report_url
from malt.sanitize import Markdown, code_span
from malt.trees.growth import nodes_per_question

T = TypeVar("T")

TIMEOUT_S = 15.0
"""Seconds to wait for a server that does not answer; one that was killed is back in half of that."""
_MOVE_EVERY_S = 5.0
"""How often a progress artifact moves; each time is one request to the server."""


async def leave(request: Awaitable[T]) -> T | None:
    """Make a request, as for an artifact, that a run goes on without; None where the server does not answer it."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await request
    except (httpx.HTTPError, TimeoutError) as error:
        said = str(error) or "no answer in time"
        get_run_logger().warning("Prefect's server did not take what the run goes on without: %s", said)
        return None


async def tag_by_spec(spec: RunSpec, models: Iterable[ModelSpec] | None = None) -> None:
    """Tag the flow run with its dataset, models (those of its roles, unless others are given) and graders."""
    named = (f"model:{each.model}" for each in models or list_models(spec))
    await tag_run(f"dataset:{spec.name}", *named, *(f"grader:{kind}" for kind in spec.evaluator.kind))


async def tag_run(*tags: str) -> None:
    """Add tags to the flow run, which the UI filters by."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    async with get_client() as client:
        await leave(client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, *tags})))


async def link_report(version: Path, command: str) -> Markdown:
    """Return a link to a version's report where the server shows it, as that of `malt up` does; else where it lies."""
    url = report_url(PREFECT_API_URL.value() or "", os.environ.get(AUTH_STRING, ""), version)
    with suppress(httpx.HTTPError, httpx.InvalidURL):
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            shown = await client.get(url)
            if shown.headers.get("content-security-policy", "").startswith(SANDBOX):  # not the UI's own page
                return Markdown(f"[report, with the trees]({url})")
    return Markdown(f"report, with the trees: {code_span(str(version / 'report.html'))} ({code_span(command)})")


@asynccontextmanager
async def show_progress(job: Job, run: Run) -> AsyncIterator[None]:
    """Show how many of the expected completions there are, new and stored, for as long as the block lasts."""
    expected = len(job.questions) * sum(nodes_per_question(job.spec).values())

    def count() -> dict[str, Any]:
        answers = run.tally.answers
        told = f"{answers:,} of {expected:,} completions"
        return {"progress": min(100.0, 100.0 * answers / expected), "description": told}

    async def move() -> None:
        if artifact is not None:
            await leave(aupdate_progress_artifact(artifact, **count()))

    async def keep_moving() -> None:
        while True:
            await asyncio.sleep(_MOVE_EVERY_S)
            await move()

    artifact = await leave(acreate_progress_artifact(key=f"{job.spec.name}-progress", **count()))
    moving = asyncio.create_task(keep_moving())
    try:
        yield
    finally:
        moving.cancel()
        with suppress(asyncio.CancelledError):
            await moving
        await move()
