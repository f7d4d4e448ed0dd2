"""What a push sends: a version's files, as they are on this disk; and what it says of itself once they have arrived."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from malt.datasets.manifest import MANIFEST_FILE, seal_holds
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import VersionError


class PackedFile(NamedTuple):
    """One file to be sent."""

    path: str
    """Below the version's folder, with `/`."""
    local: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """A whole version, checked against its manifest."""

    name: str
    number: int
    files: tuple[PackedFile, ...]
    """By path, `manifest.json` last: whoever reads it finds all the others."""

    @property
    def reference(self) -> str:
        """The version, as commands name it."""
        return f"{self.name}@{self.tag}"

    @property
    def tag(self) -> str:
        """What the version is called among those of its dataset: `v3`."""
        return f"v{self.number}"

    @property
    def manifest(self) -> PackedFile:
        """The file that speaks for all."""
        return self.files[-1]


class Pushed(BaseModel):
    """What a push came to."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: str
    dest: str
    url: str
    """Where the version now is."""
    commit: str | None = None
    """On the Hub."""
    private: bool | None = None
    """On the Hub: whether only its owner can read it."""
    sent: int
    """Files."""
    bytes: int
    """Of the files sent."""
    skipped: int
    """Files that were there already."""
    verified: int
    """Files whose digest was taken at the destination, and is right."""

    @classmethod
    def of(
        cls,
        parcel: Parcel,
        dest: str,
        url: str,
        sent: Sequence[PackedFile],
        *,
        commit: str | None = None,
        private: bool | None = None,
    ) -> Self:
        """Tell of a parcel that has arrived whole."""
        return cls(
            version=parcel.reference,
            dest=dest,
            url=url,
            commit=commit,
            private=private,
            sent=len(sent),
            bytes=sum(file.bytes for file in sent),
            skipped=len(parcel.files) - len(sent),
            verified=len(parcel.files),
        )


def pack(version: DatasetVersion) -> Parcel:
    """Collect a version's files. Raises `VersionError` where one is no longer what was published."""
    known = version.manifest.files
    try:
        files = tuple(packed(version.path, path) for path in (*sorted(known), MANIFEST_FILE))
    except OSError as error:
        raise VersionError(f"{error.filename} cannot be read ({error.strerror}), so nothing was pushed") from error
    changed = [file.path for file in files if file.path in known and file.sha256 != known[file.path].sha256]
    if not seal_holds(version.path):
        changed.append(MANIFEST_FILE)
    if changed:
        raise VersionError(
            f"{version.reference}: changed since it was published: {', '.join(changed)}; nothing was pushed. "
            f"See: malt verify {version.path}"
        )
    return Parcel(version.name, version.number, files)


def packed(folder: Path, path: str) -> PackedFile:
    """Take one file's size and digest."""
    local = folder / path
    with local.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PackedFile(path, local, local.stat().st_size, sha256)


def listed(paths: Collection[str]) -> str:
    """Name files in a message; of many the first."""
    first = sorted(paths)[:3]
    return ", ".join(first) + (f" and {len(paths) - len(first)} more" if len(paths) > len(first) else "")
