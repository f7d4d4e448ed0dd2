"""What a push sends, a version's files checked against its manifest; and its result and its errors."""

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
    """One file to be sent."""

    path: str
    """Below the version's folder, with `/`."""
    local: Path
    bytes: int
    sha256: str


class Bundle(NamedTuple):
    """A whole version, checked against its manifest."""

    name: str
    """On its shelf."""
    number: int
    files: tuple[BundledFile, ...]
    """By path, `manifest.json` last: whoever reads it finds all the others."""

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.tag}"

    @property
    def tag(self) -> str:
        """What the version is called among those of its dataset: `v3`."""
        return f"v{self.number}"

    @property
    def manifest(self) -> BundledFile:
        """The file that speaks for all."""
        return self.files[-1]


class Pushed(Recorded):
    """What a push came to."""

    version: str
    dest: str
    url: str
    """Where the version now is."""
    commit: str | None = None
    """On the Hub."""
    card: str | None = None
    """On the Hub: the commit of `main` whose card tells the results of evaluations, where there are any."""
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
    def of(cls, bundle: Bundle, dest: str, url: str, sent: Sequence[BundledFile]) -> Self:
        """Describe a bundle that has arrived whole."""
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
    """Collect a version's files. Raises `VersionError` where one is no longer what was published."""
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
    """Make whatever a storage's own library raises a `PushError` in one line."""
    try:
        yield
    except MaltError:
        raise
    except Exception as error:
        raise PushError(f"{dest}: {explain(error)}") from error
