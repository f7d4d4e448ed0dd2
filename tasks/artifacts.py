"""Artifacts, tags, assets and events that a run sends to Prefect's server besides its states.

No dataset depends on whether the server accepts them. Texts of models are shown verbatim.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect import get_run_logger
from prefect.artifacts import acreate_markdown_artifact, acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from malt.canonical_json import digest
from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.datasets.manifest import Shelf
from malt.datasets.version.published import Published
from malt.engine.job import Job, list_models
from malt.engine.run import Run
from malt.hosting.access import AUTH_STRING, SANDBOX, report_url
from malt.sanitize import Markdown, code_span, escape_controls, escape_markdown
from malt.trees.credit import ValuedTree
from malt.trees.growth import nodes_per_question
from malt.trees.tree import Node

T = TypeVar("T")

TIMEOUT_S = 15.0
"""Seconds to wait for a server that does not answer; a killed server is restarted in half of that."""
_UPDATE_EVERY_S = 5.0
"""Seconds between updates of a progress artifact; each update is one request to the server."""


async def leave(request: Awaitable[T]) -> T | None:
    """Await an optional request, such as one for an artifact; on failure log a warning and return None."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await request
    except (httpx.HTTPError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        get_run_logger().warning("an optional request to Prefect's server failed; the run goes on: %s", reason)
        return None


async def leave_markdown(text: str, key: str, description: str) -> None:
    """Create a Markdown artifact, which the UI lists with its description."""
    await leave(acreate_markdown_artifact(text, key=key, description=description))


async def tag_by_spec(spec: RunSpec, models: Iterable[ModelSpec] | None = None) -> None:
    """Tag the flow run with its dataset, graders and models, by default those of its roles."""
    named = (f"model:{each.model}" for each in models or list_models(spec))
    await tag_run(f"dataset:{spec.name}", *named, *(f"grader:{kind}" for kind in spec.evaluator.kind))


async def tag_run(*tags: str) -> None:
    """Add tags to the flow run; the UI can filter runs by them."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    async with get_client() as client:
        await leave(client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, *tags})))


async def link_report(version: Path, command: str) -> Markdown:
    """Return a link to a version's report if the server serves it, as `malt up` does; else the report's path."""
    url = report_url(PREFECT_API_URL.value() or "", os.environ.get(AUTH_STRING, ""), version)
    with suppress(httpx.HTTPError, httpx.InvalidURL):
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            shown = await client.get(url)
            if shown.headers.get("content-security-policy", "").startswith(SANDBOX):  # else it is a page of the UI
                return Markdown(f"[report, with the trees]({url})")
    return Markdown(f"report, with the trees: {code_span(str(version / 'report.html'))} ({code_span(command)})")


@asynccontextmanager
async def show_progress(job: Job, run: Run) -> AsyncIterator[None]:
    """Show the number of completions, new and stored, of those expected, while the block runs."""
    expected = len(job.questions) * sum(nodes_per_question(job.spec).values())

    def count() -> dict[str, Any]:
        answers = run.tally.answers
        description = f"{answers:,} of {expected:,} completions"
        return {"progress": min(100.0, 100.0 * answers / expected), "description": description}

    async def update() -> None:
        if artifact is not None:
            await leave(aupdate_progress_artifact(artifact, **count()))

    async def keep_updating() -> None:
        while True:
            await asyncio.sleep(_UPDATE_EVERY_S)
            await update()

    artifact = await leave(acreate_progress_artifact(key=f"{job.spec.name}-progress", **count()))
    updating = asyncio.create_task(keep_updating())
    try:
        yield
    finally:
        updating.cancel()
        with suppress(asyncio.CancelledError):
            await updating
        await update()


PUBLISHED = "malt.version.published"
"""Name of the event for a new version; publishing equal content emits none."""


def asset_key(kind: Shelf, name: str) -> str:
    """Return the key of Prefect's asset for all versions of a name."""
    return f"malt://{kind}/{name}"


def tell_published(version: Published[Any]) -> None:
    """Emit the event of a new version, which can trigger automations."""
    if not version.created:
        return
    kind, name = version.manifest.kind, version.name
    emit_event(
        PUBLISHED,
        resource={
            "prefect.resource.id": f"malt.{kind}.{name}",
            "prefect.resource.name": f"{name}@v{version.number}",
            "malt.kind": kind,
            "malt.name": name,
        },
        payload={
            "version": version.number,
            "path": str(version.path),
            "content_sha256": version.manifest.content_sha256,
        },
    )


MOST_TREES = 200
"""Most questions of a run that makes an artifact per tree; the report has the trees of larger runs."""
_LONGEST_TEXT = 8_000


def tree_key(dataset: str, question_id: str) -> str:
    """Return the key of a tree's artifact: lower-case letters, digits and hyphens."""
    slug = re.sub("[^a-z0-9]+", "-", question_id.lower()).strip("-")[:60]
    return f"{dataset}-tree-{slug if slug == question_id else f'{slug}-{digest(question_id)[:6]}'}"


def leave_tree(dataset: str, valued: ValuedTree) -> None:
    question = valued.tree.question
    key, description = tree_key(dataset, question.question_id), escape_markdown(question.question)
    text = "".join(_tree_markdown(valued))
    asyncio.run(leave_markdown(text, key, description))


def _tree_markdown(valued: ValuedTree) -> Iterator[str]:
    question, seen = valued.tree.question, set()
    yield f"# {escape_markdown(question.question)}\n\nreference: {code_span(str(question.ground_truth))}\n"
    for node in valued.tree.nodes.values():
        yield f"\n## {node.address} {node.role}: {_describe(valued, node)}\n\n{_verbatim(node.text)}\n"
        if node.role not in seen:
            prompt = "\n\n".join(f"[{message.role}]\n{message.content}" for message in node.prompt)
            yield f"\nprompt of this {node.role}:\n\n{_verbatim(prompt)}\n"
        seen.add(node.role)


def _describe(valued: ValuedTree, node: Node) -> str:
    value, grade = valued.values.get(node.address), valued.grades.get(node.address)
    parts = [str(node.status), f"value {value.mean:.2f}" if value else "", str(grade.outcome) if grade else ""]
    return ", ".join(filter(None, parts))


def _verbatim(text: str) -> str:
    """Return a text as a code block, with a fence too long for the text to close it."""
    shown = escape_controls(text[:_LONGEST_TEXT]) + ("\n…" if len(text) > _LONGEST_TEXT else "")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"
