"""Comparing under Prefect: what a new version changed, as an artifact."""

import asyncio

from prefect.artifacts import acreate_markdown_artifact

from malt.datasets.compare import compare
from malt.datasets.folders import version_numbers
from malt.datasets.version import DatasetVersion, open_folder


async def tell_changes(version: DatasetVersion) -> None:
    """Leave an artifact of what a new version changed, where the one before it is still there."""
    parent, folder = version.manifest.parent, version.path.parent
    if not version.created or parent is None or parent.version not in version_numbers(folder):
        return
    before = open_folder(folder / f"v{parent.version}")
    diff = await asyncio.to_thread(compare, before, version, 0)
    await acreate_markdown_artifact(
        diff.markdown, key=f"{version.name}-changes", description=f"{before.reference} -> {version.reference}"
    )
