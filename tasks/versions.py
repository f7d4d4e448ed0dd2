"""Published versions under Prefect: assets, whose lineage is what they were made from, and events to automate by."""

from typing import Any

from prefect.events import emit_event

from malt.datasets.manifest import Shelf
from malt.datasets.version.published import Published

PUBLISHED = "malt.version.published"
"""Event of a new version; equal content makes none."""


def asset_key(kind: Shelf, name: str) -> str:
    """Return what Prefect knows the versions of a name by."""
    return f"malt://{kind}/{name}"


def tell_published(version: Published[Any]) -> None:
    """Tell of a new version, so that automations can go on with it."""
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
