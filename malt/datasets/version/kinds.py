"""Which kind of version a reference names: datasets by their name alone, others by the shelf before it."""

from pathlib import Path
from typing import Literal

from malt.datasets.manifest import MANIFEST_FILE, VersionManifest, read_as
from malt.errors import VersionError

Kind = Literal["datasets", "models", "evaluations"]
SHELVES: dict[str, Kind] = {"models": "models", "evaluations": "evaluations"}


def find_kind(reference: str) -> Kind:
    """Return the kind by a folder's manifest, where the reference is a version's folder, else by its shelf."""
    folder = Path(reference).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        return SHELVES.get(reference.partition("/")[0], "datasets")
    try:
        return read_as(VersionManifest, folder, "whole").kind
    except VersionError:  # whoever opens it says what is wrong
        return "datasets"
