"""Common base of versions of datasets, models and evaluations: how one is named and checked."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple

from malt.canonical_json import file_sha256
from malt.datasets.manifest import MANIFEST_FILE, M, Shelf, VersionManifest, content_digest, read_as, seal_holds
from malt.datasets.version.folders import VERSION_FOLDER, list_entries
from malt.errors import VersionError


@dataclass(frozen=True)
class Published(Generic[M]):
    """One immutable version on disk."""

    path: Path
    manifest: M = field(repr=False)
    created: bool = False
    """Whether the call that returned this made the version; content equal to the newest version's makes none."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def number(self) -> int:
        return self.manifest.version

    @property
    def reference(self) -> str:
        """The version's name in commands: `NAME@v3`, for models and evaluations with the kind before it."""
        return self.manifest.reference

    def is_within(self, folder: Path) -> bool:
        """Whether the version belongs to this data folder; one from elsewhere is not trusted to name files or code."""
        linked = (folder / self.name / self.path.name, folder / self.manifest.kind / self.name / self.path.name)
        return self.path.is_relative_to(folder.resolve()) or any(place.resolve() == self.path for place in linked)


SHELVES: dict[str, Shelf] = {"models": "models", "evaluations": "evaluations"}


def find_kind(reference: str) -> Shelf:
    """Return a version's kind, from its manifest where the reference is its folder, else from the reference."""
    folder = Path(reference).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        return SHELVES.get(reference.partition("/")[0], "datasets")
    try:
        return read_as(VersionManifest, folder, "whole").kind
    except VersionError:  # opening the version will report the fault
        return "datasets"


class Problem(NamedTuple):
    """A file of a version, and what is wrong with it."""

    file: str
    fault: str

    def __str__(self) -> str:
        return f"{self.file}: {self.fault}"


def check_seal(version: Published[M]) -> Iterator[Problem]:
    """Check the manifest: its seal, the digest of the content, and the number."""
    manifest, folder = version.manifest, version.path.name
    if not seal_holds(version.path):
        yield Problem(MANIFEST_FILE, "was edited; it no longer has the digest it was sealed with")
    if content_digest(manifest.files) != manifest.content_sha256:
        yield Problem(MANIFEST_FILE, "content_sha256 is not the digest of the files' content")
    if VERSION_FOLDER.fullmatch(folder) and folder != f"v{manifest.version}":
        yield Problem(MANIFEST_FILE, f"says version {manifest.version}, but its folder is {folder}")


def check_files(version: Published[M], needed: Iterable[str] = ()) -> Iterator[Problem]:
    """Check that a version has exactly the files of its manifest, unchanged, among them those in `needed`.

    Raises `OSError` for a file that cannot be read.
    """
    known = version.manifest.files
    entries = list_entries(version.path)
    plain = {file for file, is_plain in entries.items() if is_plain}
    for file in sorted(entries.keys() - plain):
        yield Problem(file, "is no plain file; a version holds only plain files")
    for file in sorted(plain - known.keys() - {MANIFEST_FILE}):
        yield Problem(file, "is not in the manifest")
    for file in sorted({*known, *needed} - plain):
        yield Problem(file, "is missing")
    for file in sorted(plain & known.keys()):
        if file_sha256(version.path / file) != known[file].sha256:
            yield Problem(file, "its bytes changed since it was published")


def check_pages(version: Published[M], pages: Mapping[str, str]) -> Iterator[Problem]:
    """Compare the stored pages with `pages`, which the same code has written again from the other files."""
    for file, text in pages.items():
        if (path := version.path / file).is_file() and path.read_text(encoding="utf-8") != text:
            yield Problem(file, "differs from the page that the other files give")
