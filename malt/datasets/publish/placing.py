"""Placing: a finished folder becomes the next version of its name, whatever it is a version of."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from malt.canonical_json import file_sha256
from malt.datasets.manifest import FileEntry, M, Parent, VersionManifest, read_as
from malt.datasets.rows.files import RowsWritten
from malt.datasets.version.folders import claim, lock_folder, next_number, point_latest, version_numbers
from malt.errors import VersionError

log = logging.getLogger(__name__)


class Placed(NamedTuple):
    """Where a version stands, and whether it is new."""

    path: Path
    created: bool


def place_next(
    staging: Path, folder: Path, describe: Callable[[int, Parent | None], M], name: Callable[[M], None]
) -> Placed:
    """Make a finished folder the next version; where the newest has the same content, it is that one.

    `describe` says what it is as a version of a number, with the version before it; `name` writes that into the folder.
    """
    while True:
        number = next_number(folder)  # before its parent is read: one that came between takes the number
        parent = _readable_newest(folder)
        manifest = describe(number, parent)
        if parent is not None and parent.content_sha256 == manifest.content_sha256:
            with lock_folder(folder):
                point_latest(folder)
            return Placed((folder / f"v{parent.version}").resolve(), created=False)
        name(manifest)
        path = claim(staging, folder, number)
        if path is not None:
            return Placed(path.resolve(), created=True)


def _readable_newest(folder: Path) -> Parent | None:
    """Return the newest version; None, with a warning, where it is damaged: what was paid for is published still."""
    numbers = version_numbers(folder)
    try:
        newest = read_as(VersionManifest, folder / f"v{numbers[-1]}", "whole") if numbers else None
    except VersionError as error:
        log.warning("the newest version of %s cannot be read, so the next one names no parent: %s", folder.name, error)
        return None
    return Parent(version=newest.version, content_sha256=newest.content_sha256) if newest else None


def describe_file(path: Path, rows: RowsWritten | None = None) -> FileEntry:
    known = FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))
    return known if rows is None else known.model_copy(update={"rows": rows.rows, "rows_sha256": rows.sha256})
