"""Input, result and errors of a push: a version's files, checked against its manifest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from malt.canonical_json import file_sha256
from malt.config.base import Recorded
from malt.datasets.manifest import MANIFEST_FILE, seal_holds
from malt.datasets.version.published import Published
from malt.errors import MaltError, PushError, VersionError


class BundledFile(NamedTuple):
    """One file of a version."""

    path: str
    """Path below the version's folder, with `/`."""
    local: Path
    bytes: int
    sha256: str


class Bundle(NamedTuple):
    """A whole version, checked against its manifest."""

    name: str
    """Name of the dataset; for others with their kind, as in `evaluations/NAME`."""
    number: int
    files: tuple[BundledFile, ...]
    """Files sorted by path, `manifest.json` last: a reader that finds it finds all the others."""

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.tag}"

    @property
    def tag(self) -> str:
        """Name of the version within its dataset, such as `v3`."""
        return f"v{self.number}"

    @property
    def manifest(self) -> BundledFile:
        return self.files[-1]


class Pushed(Recorded):
    """Result of a push."""

    version: str
    dest: str
    url: str
    """Address of the pushed version."""
    commit: str | None = None
    """Commit of the version; on the Hub only."""
    card: str | None = None
    """Commit of `main` whose card shows the results of evaluations; on the Hub only, and only if there are any."""
    private: bool | None = None
    """Whether the repository is private; on the Hub only."""
    sent: int
    """Number of files sent."""
    bytes: int
    """Size of the files sent."""
    skipped: int
    """Number of files that the destination had already."""
    verified: int
    """Number of files whose digest at the destination was checked and is right."""

    @classmethod
    def of(cls, bundle: Bundle, dest: str, url: str, sent: Sequence[BundledFile]) -> Self:
        """Describe the push of a bundle that arrived completely."""
        return cls(
            version=bundle.reference,
            dest=dest,
            url=url,
            sent=len(sent),
            bytes=sum(file.bytes for file in sent),
            skipped=len(bundle.files) - len(sent),
            verified=len(bundle.files),
        )


def bundle_files(version: Published[Any]) -> Bundle:
    """Collect a version's files. Raises `VersionError` if one changed since publishing, or cannot be read."""
    known = version.manifest.files
    try:
        files = tuple(_describe(version.path, path) for path in (*sorted(known), MANIFEST_FILE))
    except OSError as error:
        raise VersionError(f"{error.filename} cannot be read ({error.strerror}), so nothing was pushed") from error
    if changed := _list_changed(version, files):
        raise VersionError(
            f"{version.reference}: changed since it was published: {', '.join(changed)}; nothing was pushed. "
            f"See: malt verify {version.path}"
        )
    return Bundle(version.manifest.name_on_shelf, version.number, files)


def _list_changed(version: Published[Any], files: Iterable[BundledFile]) -> list[str]:
    known = version.manifest.files
    changed = [file.path for file in files if file.path in known and file.sha256 != known[file.path].sha256]
    return changed if seal_holds(version.path) else [*changed, MANIFEST_FILE]


def _describe(folder: Path, path: str) -> BundledFile:
    local = folder / path
    return BundledFile(path, local, local.stat().st_size, file_sha256(local))


@contextmanager
def push_errors(dest: str, explain: Callable[[Exception], str]) -> Iterator[None]:
    """Turn any exception of a storage library into a `PushError` with a one-line message."""
    try:
        yield
    except MaltError:
        raise
    except Exception as error:
        raise PushError(f"{dest}: {explain(error)}") from error
