"""Work on a dataset's folder in processes that are killed: before their n-th change of the file system, or some time
after they start.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from malt.datasets.check.verify import verify
from malt.datasets.publish.removal import remove_version
from malt.datasets.version.dataset_version import open_version
from malt.datasets.version.folders import linked_numbers, put_in_place, set_tag, version_numbers

Work = Callable[..., object]

CHANGES = {"open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir"}
"""Audit events of calls that change a folder."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.crashing", "tests.forerunner"])


def remove(datasets_dir: Path, reference: str) -> None:
    remove_version(reference, datasets_dir)


def move_tag(datasets_dir: Path, tag: str, number: int) -> None:
    set_tag(datasets_dir / "arith", tag, number, move=True)


def mend(place: Path, whole: Path) -> None:
    put_in_place(whole, place)


def killed_before(change: int, work: Work, *arguments: object) -> bool:
    """Do work in a process that kills itself before its n-th change; return whether it got that far."""
    return ended(start(die_before, change, work, *arguments))


def killed_after(seconds: float, work: Work, *arguments: object) -> bool:
    """Do work in a process and kill it this long after its start; return whether it was still running."""
    here, there = PROCESSES.Pipe()
    process = start(tell_and_do, there, work, *arguments)
    assert here.recv() == "begun"
    time.sleep(seconds)
    process.kill()
    return ended(process)


def start(target: Work, *arguments: object) -> "multiprocessing.process.BaseProcess":
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: "multiprocessing.process.BaseProcess") -> bool:
    """Wait for a process to exit; return whether it was killed."""
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def die_before(change: int, work: Work, *arguments: object) -> None:
    changes = itertools.count(1)

    def count(event: str, values: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or values[2] & os.O_CREAT) and next(changes) == change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    work(*arguments)


def tell_and_do(there: Connection, work: Work, *arguments: object) -> None:
    there.send("begun")
    work(*arguments)


def check_whole(datasets_dir: Path, *numbers: int) -> list[int]:
    """Check that these versions exist, that every version verifies and no link dangles; return all version numbers."""
    folder = datasets_dir / "arith"
    found = version_numbers(folder)
    assert set(numbers) <= set(found)
    assert [problem for number in found for problem in verify(open_version(folder / f"v{number}"))] == []
    assert set(linked_numbers(folder).values()) <= set(found)
    return found
