"""Artifacts and tags: what people look at on Prefect's server. No dataset depends on whether the server takes them."""

import asyncio
import os
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.engine.job import list_models
from malt.hosting.access import AUTH_STRING
from malt.hosting.reports import SANDBOX, report_url
from malt.sanitize import Markdown, code_span

T = TypeVar("T")

TIMEOUT_S = 15.0
"""Seconds to wait for a server that does not answer; one that was killed is back in half of that."""


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
