"""Comparing under Prefect: what a new version changed, as an artifact."""

import asyncio

from prefect.artifacts import acreate_markdown_artifact

from malt.datasets.check.compare import compare
from malt.datasets.rows.tables import TRAJECTORIES_FILE
from malt.datasets.version.dataset_version import DatasetVersion, open_folder
from malt.datasets.version.folders import version_numbers
from tasks.artifacts import leave

MOST_NODES = 500_000
"""Of two versions together: comparing takes some 200 bytes of memory a node, and a run shall not need more than it."""


async def tell_changes(version: DatasetVersion) -> None:
    """Leave an artifact of what a new version changed, where the one before it is still there."""
    parent, folder = version.manifest.parent, version.path.parent
    if not version.created or parent is None or parent.version not in version_numbers(folder):
        return
    before = open_folder(folder / f"v{parent.version}")
    changed = await asyncio.to_thread(changes, before, version)
    described = f"{before.reference} -> {version.reference}"
    await leave(acreate_markdown_artifact(changed, key=f"{version.name}-changes", description=described))


def changes(before: DatasetVersion, after: DatasetVersion) -> str:
    """Tell in Markdown what changed; of large versions, how that is found out."""
    if nodes_of(before) + nodes_of(after) <= MOST_NODES:
        return compare(before, after, 0).markdown
    return (
        f"`{before.reference}` has {nodes_of(before):,} nodes, `{after.reference}` {nodes_of(after):,}: too many to "
        f"compare beside a run. This does: `malt diff {before.reference} {after.reference}`\n"
    )


def nodes_of(version: DatasetVersion) -> int:
    """How many nodes a version has."""
    return version.manifest.files[TRAJECTORIES_FILE].rows or 0
