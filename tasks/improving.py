"""Improving under Prefect: its rounds are an artifact."""

from prefect.artifacts import acreate_markdown_artifact

from malt.improvement.report import render_markdown
from malt.improvement.summary import Improvement
from tasks.artifacts import leave


async def announce_rounds(done: Improvement) -> None:
    """Put accuracy by round where Prefect shows it."""
    key = f"{done.name}-improvement"
    await leave(acreate_markdown_artifact(render_markdown(done), key=key, description=done.sentence))
