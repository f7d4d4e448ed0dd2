"""A dataset's folder: its versions `v1`, `v2`, …, links to them (`latest` and tags), and folders still being written.

One rename adds or removes a version, and one sets a link, so a crash leaves each of them whole or absent. The renames
happen under the folder's lock. Needs a POSIX file system.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from malt.canonical_json import file_sha256
from malt.datasets.manifest import MANIFEST_FILE, FileEntry, M, Parent, VersionManifest, read_as, write_manifest
from malt.datasets.rows.files import RowsWritten
from malt.errors import InputError, VersionError
from malt.files import PRIVATE_FILE, PRIVATE_FOLDER, make_private, make_private_folder
from malt.processes import is_running, machine_id

LATEST = "latest"
_LOCK = ".lock"
VERSION_FOLDER = re.compile(r"v[1-9][0-9]*")
"""Name of a version's folder in its dataset's folder; a copy elsewhere may have any other name."""
TAG = re.compile(r"(?![vV][0-9]|(?i:latest)\Z)[A-Za-z][A-Za-z0-9._-]{0,99}")
STAGING = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]+")
STAGING_SECONDS = 86_400
"""Age at which another machine's unfinished folder counts as abandoned."""


def version_numbers(folder: Path) -> list[int]:
    """Return the numbers of a dataset's versions, in order; folders without a manifest and links do not count."""
    return [number for number in folder_numbers(folder) if (folder / f"v{number}" / MANIFEST_FILE).is_file()]


def folder_numbers(folder: Path) -> list[int]:
    """Return the numbers of a dataset's versions, with or without a manifest, in order."""
    return sorted(number for number, entry in numbered_entries(folder) if entry.is_dir() and not entry.is_symlink())


def _next_number(folder: Path) -> int:
    """Return a number above those of all versions, links and other entries; the newest version is never removed."""
    return max([*(number for number, _ in numbered_entries(folder)), *linked_numbers(folder).values()], default=0) + 1


def numbered_entries(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the entries of a folder named `v1`, `v2`, …, with their numbers."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if VERSION_FOLDER.fullmatch(entry.name):
            yield int(entry.name[1:]), entry


def linked_numbers(folder: Path) -> dict[str, int]:
    """Return the version numbers that `latest` and the tags point at, by link; the versions may be missing."""
    entries = sorted(entry for entry in folder.iterdir() if entry.name[0] != ".") if folder.is_dir() else []
    named = {entry.name: _linked_number(entry) for entry in entries}
    return {name: number for name, number in named.items() if number is not None}


def _linked_number(link: Path) -> int | None:
    with suppress(OSError):
        if VERSION_FOLDER.fullmatch(target := str(link.readlink())):
            return int(target[1:])
    return None


def number_of(version: Path) -> int:
    """Return a version's number from its folder's name. Raises `VersionError` for a copy with another name."""
    if not VERSION_FOLDER.fullmatch(version.name):
        raise VersionError(f"{version} is a copy outside its dataset's folder; name a version as NAME@v3")
    return int(version.name[1:])


def refuse_in_versions(place: Path) -> None:
    """Raise `InputError` for a path in a version, which never changes, or one that would look like a version."""
    for folder in (place, *place.parents):
        if (folder / MANIFEST_FILE).is_file():
            raise InputError(f"{place} is in the version {folder}, which never changes; name another folder")
    if VERSION_FOLDER.fullmatch(place.name) and version_numbers(place.parent):
        raise InputError(f"{place} would look like a version of {place.parent.name!r}; name another folder")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a dataset's lock; the system releases it when the process dies."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_staging(folder: Path, mode: int = PRIVATE_FOLDER) -> Path:
    """Make a folder to write a version in, next to its final place; remove those that dead writers left."""
    try:
        make_private_folder(folder)
    except OSError as error:
        raise VersionError(f"{folder}: a folder for versions cannot be made there: {error.strerror}") from error
    for entry in folder.iterdir():
        if is_abandoned(entry):
            discard(entry)
    staging = temporary_name(folder)
    staging.mkdir(mode)
    return staging


def temporary_name(folder: Path) -> Path:
    """Return an unused name for an entry still being written; it holds the writer's machine and process id."""
    return folder / f".tmp-{_writer_host()}-{os.getpid()}-{uuid4().hex[:8]}"


@cache
def _writer_host() -> str:
    """Return a name for this machine or container, within which a writer's process id is valid."""
    return f"{socket.gethostname()}.{hashlib.sha256(machine_id().encode()).hexdigest()[:8]}"


def discard(entry: Path) -> None:
    """Remove a folder, file or link, which another process may be removing too."""
    if entry.is_symlink() or entry.is_file():
        entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(entry, ignore_errors=True)


def is_abandoned(entry: Path) -> bool:
    """Whether an entry is a folder whose writer is gone: dead on this host, or inactive for a day on another."""
    name = STAGING.fullmatch(entry.name)
    if name is None:
        return False
    if name["host"] == _writer_host():
        return not is_running(int(name["pid"]))
    return time.time() - last_touched(entry) > STAGING_SECONDS


def last_touched(entry: Path) -> float:
    """Return when anything in a folder last changed; the current time where it is being removed."""
    with suppress(FileNotFoundError):
        return max(path.lstat().st_mtime for path in [entry, *entry.rglob("*")])
    return time.time()


def latest_number(folder: Path) -> int | None:
    """Return the number of the newest version that is not withheld; one with a damaged manifest counts too."""
    return next((number for number in reversed(version_numbers(folder)) if not why_not_latest(folder, number)), None)


def why_not_latest(folder: Path, number: int) -> str | None:
    """Return why a version is withheld; None where it is not, or where its manifest cannot be read."""
    with suppress(VersionError):
        return read_as(VersionManifest, folder / f"v{number}", "whole").withheld
    return None


def point_latest(folder: Path) -> None:
    """Point `latest` at its version, from which a crash may have kept it; the caller holds the folder's lock."""
    number = latest_number(folder)
    if number is not None:
        point(folder, LATEST, number)


def point(folder: Path, name: str, number: int) -> None:
    """Point a link at a version; the caller holds the folder's lock."""
    if _linked_number(folder / name) == number:
        return
    link = temporary_name(folder)
    link.symlink_to(f"v{number}")
    try:
        link.replace(folder / name)
    except IsADirectoryError as error:
        link.unlink()
        raise VersionError(f"{folder / name} is a folder, and should be a link to v{number}; move it away") from error
    sync(folder)


def move_away(version: Path) -> Path:
    """Rename a version to a temporary name, under the folder's lock; return its path, for the caller to discard."""
    retired = version.rename(temporary_name(version.parent))
    sync(version.parent)
    return retired


def put_in_place(staging: Path, place: Path) -> None:
    """Move a finished version to its place: by one rename, or entry by entry over a damaged version that is there.

    The manifest, which vouches for the other files, comes last. A crash leaves a damaged folder damaged, never missing.
    """
    _seal_tree(staging)
    if not (place.is_dir() and any(place.iterdir())):
        staging.rename(place)
        return sync(place.parent)
    _replace_entries(staging, place)
    return sync(place)


def _replace_entries(staging: Path, place: Path) -> None:
    finished = {entry.name: entry for entry in staging.iterdir()}
    for entry in place.iterdir():
        if entry.name not in finished or entry.is_dir() or finished[entry.name].is_dir():
            discard(entry)
    for name in sorted(finished, key=lambda name: name == MANIFEST_FILE):
        finished[name].replace(place / name)


def list_entries(folder: Path) -> dict[str, bool]:
    """Return all paths below a folder except folders, and whether each is a plain file. Raises `OSError`."""

    def fail(error: OSError) -> None:
        raise error

    found = sorted(Path(place, name) for place, *names in os.walk(folder, onerror=fail) for name in chain(*names))
    return {
        path.relative_to(folder).as_posix(): path.is_file() and not path.is_symlink()
        for path in found
        if path.is_symlink() or not path.is_dir()
    }


def size_of(entry: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(path.lstat().st_size for path in [entry, *entry.rglob("*")] if not path.is_dir())


def _seal_tree(folder: Path) -> None:
    """Close a finished folder and all below it to other users, and flush it to disk."""
    for path in [*folder.rglob("*"), folder]:
        make_private(path)
    sync_tree(folder)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all below it to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tags_of(folder: Path) -> dict[str, int]:
    return {name: number for name, number in linked_numbers(folder).items() if TAG.fullmatch(name)}


def set_tag(folder: Path, tag: str, number: int, *, move: bool = False) -> int | None:
    """Point a tag at a version, and return the number that it pointed at before.

    Raises `VersionError` for an invalid tag, for a version that does not exist, and for a tag that points at another
    version, unless `move` is set.
    """
    if not TAG.fullmatch(tag):
        raise VersionError(
            f"{tag[:60]!r} is no valid tag: a tag begins with a letter, continues with letters, digits, '.', '_', '-', "
            "and must not look like a version's number or 'latest'"
        )
    with lock_folder(folder):
        before = _linked_number(folder / tag)
        if not (folder / f"v{number}").is_dir():
            raise VersionError(f"{folder.name}@v{number} does not exist; tag another version")
        if before not in (None, number) and not move:
            raise VersionError(f"{folder.name}@{tag} points at v{before}; to move it to v{number}, add --move")
        if before is None and (folder / tag).exists():
            raise VersionError(f"{folder / tag} exists and is no tag; move it away, or choose another name")
        point(folder, tag, number)
    return before


def remove_tag(folder: Path, tag: str) -> int:
    """Remove a tag, and return the number that it pointed at. Raises `VersionError` where there is no such tag."""
    with lock_folder(folder):
        tags = tags_of(folder)
        if tag not in tags:
            known = ", ".join(tags) or "none"
            raise VersionError(f"dataset {folder.name!r} has no tag {tag[:60]!r}; there are: {known}")
        (folder / tag).unlink()
        sync(folder)
    return tags[tag]


log = logging.getLogger(__name__)


class Placed(NamedTuple):
    """Path of a version, and whether it is new."""

    path: Path
    created: bool


def place_next(
    staging: Path, folder: Path, describe: Callable[[int, Parent | None], M], name: Callable[[M], None]
) -> Placed:
    """Make a finished folder the next version, and point `latest` at it unless it is withheld.

    Where the newest version has the same content, return that one instead.
    `describe` makes the manifest for a number and the version before it; `name` writes it into the folder.
    """
    while True:
        number = _next_number(folder)  # before the parent: the check below then notices a version added in between
        parent = _readable_newest(folder)
        manifest = describe(number, parent)
        if parent is not None and parent.content_sha256 == manifest.content_sha256:
            with lock_folder(folder):
                point_latest(folder)
            return Placed((folder / f"v{parent.version}").resolve(), created=False)
        name(manifest)
        _seal_tree(staging)
        with lock_folder(folder):
            if _next_number(folder) == number:  # another process may have taken it
                path = staging.rename(folder / f"v{number}")
                sync(folder)
                point_latest(folder)
                return Placed(path.resolve(), created=True)


def _readable_newest(folder: Path) -> Parent | None:
    """Return the newest version; None, with a warning, where it is damaged, so that paid work is still published."""
    numbers = version_numbers(folder)
    try:
        newest = read_as(VersionManifest, folder / f"v{numbers[-1]}", "whole") if numbers else None
    except VersionError as error:
        log.warning("the newest version of %s cannot be read, so the next one names no parent: %s", folder.name, error)
        return None
    return Parent(version=newest.version, content_sha256=newest.content_sha256) if newest else None


@contextmanager
def staging_in(folder: Path, mode: int = PRIVATE_FOLDER) -> Iterator[Path]:
    """Make a folder to write in, next to its final place; remove what is left of it at the end."""
    staging = open_staging(folder, mode)
    try:
        yield staging
    finally:
        discard(staging)


def name_version(manifest: VersionManifest, pages: Mapping[str, str], staging: Path) -> None:
    """Write the files that hold a version's number: its pages, and the manifest that lists them."""
    for name, text in pages.items():
        (staging / name).write_text(text, encoding="utf-8")
    files = {**manifest.files, **{name: describe_file(staging / name) for name in pages}}
    write_manifest(manifest.model_copy(update={"files": files}), staging)


def describe_file(path: Path, rows: RowsWritten | None = None) -> FileEntry:
    known = FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))
    return known if rows is None else known.model_copy(update={"rows": rows.rows, "rows_sha256": rows.sha256})
