"""Supervised commands that end with the process that started them: `start`, and `end` to stop one earlier.

A supervisor, `python -m malt.hosting.supervise COMMAND…`, runs the command. It ends when its standard input is closed,
whose write end the parent process holds. All descendants of the command, even in sessions of their own, end with it; a
command that is killed is restarted.
"""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from malt.processes import Restarts, wait_for_parent

STOP_LIMIT_S = 7.5
"""Seconds that the command and its descendants may take to end."""
_LOOK_EVERY_S = 0.1
_parent_has_ended = threading.Event()
_SUBREAPER = 36
"""Linux's PR_SET_CHILD_SUBREAPER: orphaned descendants become children of this process."""


def start(command: Sequence[str], log: Path, folder: Path | None = None, **variables: str) -> "subprocess.Popen[bytes]":
    """Start a command that ends with this process; its output goes to a log that only its user can read."""
    with log.open("ab") as printed:
        log.chmod(0o600)
        return subprocess.Popen(  # noqa: S603 - our caller's command
            [sys.executable, "-m", "malt.hosting.supervise", *command],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            cwd=folder,
            env={**os.environ, **variables},
            start_new_session=True,  # keeps Ctrl-C from the command: this process ends its commands in order
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a command that `start` started, with its descendants; kill them if they take too long."""
    if process.stdin is not None:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S + 2)
    process.kill()
    process.wait()


# The supervisor process.


def main() -> None:
    """Run the command until it ends or standard input is closed; then end all remaining descendants."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code, restarts = _run_command(), Restarts()
    while code < 0 and not _parent_has_ended.is_set() and restarts.grant(time.monotonic()):
        code = _run_command()
    _end_children()
    sys.exit(code)


def _run_command() -> int:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - our caller's command
    return _wait(process.pid)


def _wait(pid: int) -> int:
    """Reap all children until one ends, and return its exit code."""
    while True:
        reaped, status = os.wait()
        if reaped == pid:
            return os.waitstatus_to_exitcode(status)


def _end_with_parent() -> None:
    wait_for_parent()
    _parent_has_ended.set()
    while True:  # until this process ends: a new child may be starting
        _end_children()
        time.sleep(_LOOK_EVERY_S)


def _end_children() -> None:
    """Terminate all descendants, also those that start meanwhile; kill those that take too long."""
    deadline, terminated = time.monotonic() + STOP_LIMIT_S, set[psutil.Process]()
    while running := {child for child in psutil.Process().children(recursive=True) if _is_running(child)}:
        is_late = time.monotonic() > deadline
        for child in running if is_late else running - terminated:
            with suppress(psutil.NoSuchProcess):
                child.kill() if is_late else child.terminate()
        terminated |= running
        time.sleep(_LOOK_EVERY_S)


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    main()
