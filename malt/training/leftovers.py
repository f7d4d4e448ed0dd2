"""What training leaves that can be made again: folders of jobs that nobody goes on with, and unpacked bases."""

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from malt.config.settings import Settings
from malt.datasets.version.folders import discard, size_of
from malt.training.job import LOCK


class Leftovers(NamedTuple):
    """How much there is, or was."""

    folders: int
    folder_bytes: int


def clear_leftovers(settings: Settings, older_than_s: float, *, delete: bool) -> Leftovers:
    """Count, or remove, folders below `training/` in which nothing has changed for so long and nobody works."""
    before = time.time() - older_than_s
    left = [folder for folder in _job_folders(settings.training_dir) if _last_change(folder) < before]
    idle = [folder for folder in left if not _is_in_use(folder)]
    found = Leftovers(len(idle), sum(map(size_of, idle)))
    for folder in idle if delete else ():
        discard(folder)
    return found


def _job_folders(training_dir: Path) -> Iterator[Path]:
    for name in sorted(training_dir.iterdir()) if training_dir.is_dir() else ():
        yield from (folder for folder in sorted(name.iterdir()) if folder.is_dir())


def _last_change(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _is_in_use(folder: Path) -> bool:
    """Whether a training process holds a job's lock."""
    lock = folder / LOCK
    if not lock.exists():
        return False
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
