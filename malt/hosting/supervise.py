"""Run a command for as long as the process that started it lives: `start`, and `end` before that.

It runs below a process of its own, `python -m malt.hosting.supervise COMMAND…`, whose parent holds the other end of
standard input, and loses it however it ends. What the command started itself, in sessions of their own too, ends with
it; where the command alone is killed, it is started again.
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
"""Seconds the command and its children may take to end."""
_LOOK_EVERY_S = 0.1
_parent_has_ended = threading.Event()
_SUBREAPER = 36
"""Linux's number for: orphans below this process become its children."""


def start(command: Sequence[str], log: Path, folder: Path | None = None, **variables: str) -> "subprocess.Popen[bytes]":
    """Start a command that ends with this process; what it prints goes to a log that is its user's alone."""
    with log.open("ab") as printed:
        log.chmod(0o600)
        return subprocess.Popen(  # noqa: S603 - our caller's command
            [sys.executable, "-m", "malt.hosting.supervise", *command],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            cwd=folder,
            env={**os.environ, **variables},
            start_new_session=True,  # Ctrl-C is for this process, which ends the others in order
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a command that `start` started, and what it started; who takes too long is killed."""
    if process.stdin is not None:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S + 2)
    process.kill()
    process.wait()


# The process between.


def main() -> None:
    """Run the command until it ends by itself or standard input does; then end all that is left below this process."""
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
    while True:  # until this process ends: something may just be starting
        _end_children()
        time.sleep(_LOOK_EVERY_S)


def _end_children() -> None:
    """Terminate what runs below this process and what that still starts; kill what takes too long."""
    deadline, told = time.monotonic() + STOP_LIMIT_S, set[psutil.Process]()
    while running := {child for child in psutil.Process().children(recursive=True) if _is_running(child)}:
        is_late = time.monotonic() > deadline
        for child in running if is_late else running - told:
            with suppress(psutil.NoSuchProcess):
                child.kill() if is_late else child.terminate()
        told |= running
        time.sleep(_LOOK_EVERY_S)


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    main()
