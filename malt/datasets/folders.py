"""A dataset's folder: its versions `v1`, `v2`, …, the link `latest`, and folders still being written.

A version appears by one rename, so a crash leaves it whole or not at all. Needs a POSIX file system.
"""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from malt.errors import VersionError

LATEST = "latest"
STAGING = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]+")
STAGING_SECONDS = 86_400
"""How old another machine's unfinished folder is when nobody is taken to be writing it any more."""


def version_numbers(folder: Path) -> list[int]:
    """The numbers of a dataset's versions, in order; none where the folder is not there."""
    return sorted(number for number, entry in numbered(folder) if entry.is_dir())


def next_number(folder: Path) -> int:
    """The number of the next version: above all that are taken, by a version or by whatever else lies there."""
    return max((number for number, _ in numbered(folder)), default=0) + 1


def numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield what is called `v1`, `v2`, … in a folder."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"v[1-9][0-9]*", entry.name):
            yield int(entry.name[1:]), entry


def open_staging(folder: Path) -> Path:
    """Make a folder to write a version in, next to where it will stand; clear away those that dead writers left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VersionError(f"{folder}: a folder for versions cannot be made there: {error.strerror}") from error
    for entry in folder.iterdir():
        if is_abandoned(entry):
            discard(entry)
    staging = unfinished(folder)
    staging.mkdir()
    return staging


def unfinished(folder: Path) -> Path:
    """A new name for something still being written, which says who writes it."""
    return folder / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"


def discard(entry: Path) -> None:
    """Remove an unfinished folder or link, or what another writer's clearing has left of it."""
    if entry.is_symlink():
        entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(entry, ignore_errors=True)


def is_abandoned(entry: Path) -> bool:
    """Whether an entry is a folder whose writer is gone: dead on this machine, or silent for a day on another."""
    name = STAGING.fullmatch(entry.name)
    if name is None:
        return False
    if name["host"] == socket.gethostname():
        return not is_running(int(name["pid"]))
    return time.time() - last_touched(entry) > STAGING_SECONDS


def last_touched(entry: Path) -> float:
    """When anything in a folder last changed, in seconds since the epoch; now, where it is just disappearing."""
    try:
        return max(path.lstat().st_mtime for path in [entry, *entry.rglob("*")])
    except FileNotFoundError:
        return time.time()


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def claim(staging: Path, folder: Path, number: int) -> Path | None:
    """Make a finished folder version `number`; None where another writer just took that number."""
    sync_tree(staging)
    try:
        version = staging.rename(folder / f"v{number}")
    except OSError:
        if (folder / f"v{number}").exists():
            return None
        raise
    sync(folder)
    return version


def point_latest(folder: Path) -> None:
    """Let `latest` name the newest version, also when several writers do so at once."""
    while True:
        newest = max(version_numbers(folder))
        link = unfinished(folder)
        link.symlink_to(f"v{newest}")
        try:
            link.replace(folder / LATEST)
        except IsADirectoryError as error:
            link.unlink()
            raise VersionError(
                f"{folder / LATEST} is a folder, and should be a link to v{newest}; move it away"
            ) from error
        sync(folder)
        if max(version_numbers(folder)) == newest:
            return


def sync_tree(folder: Path) -> None:
    """Make sure that a folder and all below it is on disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
