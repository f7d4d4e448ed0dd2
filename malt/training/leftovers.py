"""What training leaves that can be made again: folders of jobs that nobody goes on with, and unpacked bases."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from malt.config.settings import Settings
from malt.datasets.version.folders import discard, size_of
from malt.training.job import BASES, LOCK, lock_of_base


class Leftovers(NamedTuple):
    """How much there is, or was."""

    folders: int
    folder_bytes: int


def clear_leftovers(settings: Settings, older_than_s: float, *, delete: bool) -> Leftovers:
    """Count, or remove, folders below `training/` in which nothing has changed for so long and nobody works."""
    before, folders, sizes = time.time() - older_than_s, 0, 0
    for folder in _job_folders(settings.training_dir):
        with _unused(folder) as is_unused:
            if is_unused and _last_change(folder) < before:
                folders, sizes = folders + 1, sizes + size_of(folder)
                if delete:
                    discard(folder)
    return Leftovers(folders, sizes)


def _job_folders(training_dir: Path) -> Iterator[Path]:
    for name in sorted(training_dir.iterdir()) if training_dir.is_dir() else ():
        yield from (folder for folder in sorted(name.iterdir()) if folder.is_dir())


def _last_change(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Keep training processes out of a job's folder, or an unpacked base; say whether none is in it."""
    is_base = folder.parent.name == BASES
    lock = lock_of_base(folder) if is_base else folder / LOCK
    if not is_base and not lock.exists():
        yield True
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
