"""Files closed to other users, reading and replacing what others may have put there, and locked files."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def make_private_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; what is there already keeps its mode."""
    missing = [each for each in path.parents if not each.exists()]
    for folder in [*reversed(missing), path]:
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def make_private(path: Path) -> None:
    """Close a file or folder of ours to others; a link stays as it is."""
    if not path.is_symlink():
        path.chmod(PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)


MIB = 2**20


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Read a whole file. Raises `OSError` for a link, a device, a pipe, and for one that is too large."""
    _refuse_links(path)
    follow = os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not make us wait
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | follow)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
    if status.st_size > most_bytes or len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes // MIB:,} MiB")
    return data


def _refuse_links(path: Path) -> None:
    """Refuse a link; of a relative path no folder on the way may be one either."""
    for part in (path,) if path.is_absolute() else (path, *path.parents):
        if part.is_symlink():
            raise OSError(errno.ELOOP, f"{part} is a link; name the file that it leads to")


class FileLock:
    """A locked file, which says who has it; the operating system lets go of it with the process."""

    def __init__(self, path: Path, who: str) -> None:
        """Open the file, or make it. Raises `OSError`."""
        make_private_folder(path.parent)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        self._who, self._is_held = who, False

    def take(self) -> str | None:
        """Take it, and return None; or return who has it, empty where that is not written yet."""
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
        """Close the file, which stays, without a name: removed, two could lock two files of its name."""
        if self._is_held:
            with suppress(OSError):  # whoever waits next may read who had it
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


@contextmanager
def hold_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for a file's lock, and hold it, among others or alone; a process that is killed lets go of it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file; an earlier one, or a link, gives way once it is whole. Raises `OSError` where another thing is."""
    if (path.exists() and not path.is_file()) or path.absolute().is_relative_to("/dev"):
        raise OSError(errno.EINVAL, f"{path} is there, and no file")
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
    """Write a text as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())
