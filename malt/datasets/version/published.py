"""What versions of datasets, models and evaluations have in common: how one is named, opened and checked."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Generic

from pydantic import ValidationError

from malt.canonical_json import file_sha256
from malt.config.spec import RunSpec
from malt.datasets.manifest import MANIFEST_FILE, M, Shelf, VersionManifest, content_digest, read_as, seal_holds
from malt.datasets.version.folders import VERSION_FOLDER
from malt.errors import VersionError


@dataclass(frozen=True)
class Published(Generic[M]):
    """One immutable version on disk."""

    path: Path
    manifest: M = field(repr=False)
    created: bool = False
    """Whether the call that returned this made it; equal content makes no new version."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def number(self) -> int:
        return self.manifest.version

    @property
    def reference(self) -> str:
        """How commands name it: `NAME@v3`, of models and evaluations with the shelf before it."""
        return f"{self.manifest.name_on_shelf}@v{self.number}"

    def is_within(self, folder: Path) -> bool:
        """Whether it is one of this folder's own; others are from elsewhere, and what they name is not trusted."""
        linked = (folder / self.name / self.path.name, folder / self.manifest.kind / self.name / self.path.name)
        return self.path.is_relative_to(folder.resolve()) or any(place.resolve() == self.path for place in linked)


SHELVES: dict[str, Shelf] = {"models": "models", "evaluations": "evaluations"}


def find_kind(reference: str) -> Shelf:
    """Return the kind by a folder's manifest, where the reference is a version's folder, else by its shelf."""
    folder = Path(reference).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        return SHELVES.get(reference.partition("/")[0], "datasets")
    try:
        return read_as(VersionManifest, folder, "whole").kind
    except VersionError:  # whoever opens it says what is wrong
        return "datasets"


def read_spec(config: Mapping[str, Any], reference: str) -> RunSpec:
    """Return what a version was declared with. Raises `VersionError` where this release cannot read it."""
    try:
        return RunSpec.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise VersionError(f"{reference}: its config is no longer a valid one ({first})") from error


def check_seal(version: Published[M]) -> Iterator[str]:
    """Yield what does not hold of the manifest itself."""
    manifest, folder = version.manifest, version.path.name
    if not seal_holds(version.path):
        yield "was edited; it no longer has the digest it was sealed with"
    if content_digest(manifest.files) != manifest.content_sha256:
        yield "content_sha256 is not the digest of the files' content"
    if VERSION_FOLDER.fullmatch(folder) and folder != f"v{manifest.version}":
        yield f"says version {manifest.version}, but stands in {folder}"


def list_entries(folder: Path) -> dict[str, Path]:
    """List all that is below a folder, by its path there. Raises `OSError` where that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    found = (Path(place, name) for place, *names in os.walk(folder, onerror=fail) for name in chain(*names))
    return {path.relative_to(folder).as_posix(): path for path in found}


def check_files(version: Published[M], needed: Iterable[str] = ()) -> Iterator[str]:
    """Check that all files, the `needed` ones among them, and no others are there as they were published.

    Raises `OSError` for one that cannot be read.
    """
    known = version.manifest.files
    entries = list_entries(version.path)
    present = {file for file, path in entries.items() if path.is_symlink() or not path.is_dir()}
    for file in sorted(present - known.keys() - {MANIFEST_FILE}):
        yield f"{file}: is not in the manifest"
    for file in sorted({*known, *needed}):
        if file not in present or file not in known:
            yield f"{file}: is missing"
        elif file_sha256(version.path / file) != known[file].sha256:
            yield f"{file}: its bytes changed since it was published"


def check_pages(version: Published[M], pages: Mapping[str, str]) -> Iterator[str]:
    """Compare pages to what they say when they are written again, by the code that wrote them."""
    for file, text in pages.items():
        path = version.path / file
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            yield f"{file}: does not say what the other files say"
