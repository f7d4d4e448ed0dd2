"""Private files and folders, safe reads and atomic replacement of files that others may have made, file locks."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def make_private_folder(path: Path) -> None:
    """Create a folder and its missing parents for this user alone; existing folders keep their mode."""
    missing = [each for each in path.parents if not each.exists()]
    for folder in [*reversed(missing), path]:
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def make_private(path: Path) -> None:
    """Remove other users' access to a file or folder of ours; a link stays as it is."""
    if not path.is_symlink():
        path.chmod(PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)


MIB = 2**20
_DEVICES = (Path("/dev"), Path("/dev/fd"))
"""Folders of devices. `/dev/stdout` can lead to a regular file; a rename would replace the device itself."""


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Read a whole file. Raises `OSError` for a link, a device, a pipe, and a file larger than `most_bytes`."""
    _refuse_links(path)
    flags_added = os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would block otherwise
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | flags_added)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
    if status.st_size > most_bytes or len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes // MIB:,} MiB")
    return data


def _refuse_links(path: Path) -> None:
    """Raise `OSError` for a link, and for a relative path through one."""
    for part in (path,) if path.is_absolute() else (path, *path.parents):
        if part.is_symlink():
            raise OSError(errno.ELOOP, f"{part} is a link; name the file that it leads to")


def is_full(folder: Path) -> bool:
    """Whether a folder's file system has less than a MiB of room left."""
    return shutil.disk_usage(folder).free < MIB


class FileLock:
    """Lock file that names its owner; the operating system releases it when the process ends."""

    def __init__(self, path: Path, who: str) -> None:
        """Open or create the file; `who` names this owner. Raises `OSError`."""
        make_private_folder(path.parent)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        self._who, self._is_held = who, False

    def take(self) -> str | None:
        """Take the lock and return None, or return its owner's name, empty if that is not written yet."""
        if self._is_held:
            return None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(self._descriptor, 1_000, 0).decode(errors="replace")
        self._is_held = True
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._who.encode(), 0)
        return None

    def release(self) -> None:
        """Release the lock; the emptied file stays: were it removed, two processes could lock two files of one name."""
        if self._is_held:
            with suppress(OSError):  # then a waiter may read this owner's name a little longer
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


@contextmanager
def hold_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for a file's lock, shared or exclusive, and hold it; a killed process releases it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a new file, then rename it over the old one, or over a link. Raises `OSError` for a folder or a device."""
    if (path.exists() and not path.is_file()) or path.absolute().parent in _DEVICES:
        raise OSError(errno.EINVAL, f"{path} is not a regular file")
    mode = path.stat().st_mode if path.is_file() else None
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
        if mode is not None:
            unfinished.chmod(stat.S_IMODE(mode))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content with a text, atomically."""
    with replacing(path) as file:
        file.write(text.encode())
