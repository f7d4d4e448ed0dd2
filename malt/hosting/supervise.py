"""Run a command for as long as the process that started it lives: `python -m malt.hosting.supervise COMMAND…`.

Where it is killed it is started again. It is told to end when standard input does: whoever started it holds the other
end, and loses it however it ends. What the command itself started, in sessions of their own too, ends with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

STOP_LIMIT_S = 7.5
"""Seconds the command and its children may take to end."""
LOOK_EVERY_S = 0.1
STARTS, STARTS_WITHIN_S = 4, 60.0
"""How often something is started within so many seconds, at most: after that it is left as it is."""
SUBREAPER = 36
"""Linux's number for: orphans below this process become its children."""


class Starts:
    """When something was started, the first time and again."""

    def __init__(self) -> None:
        self._at = [time.monotonic()]

    def again(self) -> bool:
        """Whether it may be started once more; if so, note that it is."""
        now = time.monotonic()
        self._at = [at for at in self._at if now - at < STARTS_WITHIN_S] + [now]
        return len(self._at) <= STARTS


def main() -> None:
    """Keep a command running until it ends by itself, or until standard input does; then end all that is left of it."""
    adopt_orphans()
    tied = Tied(sys.argv[1:])
    threading.Thread(target=tied.end_with_parent, daemon=True).start()
    sys.exit(tied.run())


class Tied:
    """A command, started again where it is killed, until it is to end."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._starting, self._ending, self._is_over = threading.Lock(), threading.Lock(), False

    def run(self) -> int:
        """Run it, and return its exit code once nothing is left below this process."""
        code, starts = 1, Starts()
        while (process := self._start()) is not None:
            code = ended(process)
            if code >= 0 or self._is_over or not starts.again():
                break
            told = f"{' '.join(self._command)}: killed by signal {-code}; started again"
            print(told, file=sys.stderr, flush=True)
        self._end()
        return code

    def end_with_parent(self) -> None:
        """Wait for the parent's end, then end all below this process."""
        while os.read(0, 1024):
            pass
        self._end()

    def _start(self) -> "subprocess.Popen[bytes] | None":
        with self._starting:
            if self._is_over:
                return None
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL)  # noqa: S603 - our caller's command

    def _end(self) -> None:
        with self._starting:  # nothing is started from now on
            self._is_over = True
        with self._ending:  # nobody is told twice
            end_all_below()


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a command's end, and return its exit code; bury the orphans that end meanwhile, as a parent must."""
    while (buried := os.wait())[0] != process.pid:
        pass
    process.returncode = os.waitstatus_to_exitcode(buried[1])
    return process.returncode


def adopt_orphans() -> None:
    """Stay the parent of what a killed command leaves behind, where the system can do that."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_all_below() -> None:
    """End what runs below this process, and what that still starts: politely at first."""
    deadline, told = time.monotonic() + STOP_LIMIT_S, set[int]()
    while family := [pid for pid in descendants(os.getpid()) if is_running(pid)]:
        is_late = time.monotonic() > deadline
        for pid in family if is_late else set(family) - told:
            tell(pid, signal.SIGKILL if is_late else signal.SIGTERM)
        told.update(family)
        time.sleep(LOOK_EVERY_S)


def descendants(pid: int) -> list[int]:
    """Return the processes below one, parents first; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    for child, parent in parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found.extend(children.get(each, ()))
    return found[1:]


def parents() -> Iterator[tuple[int, int]]:
    """Yield every process with its parent."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            pid, _, rest = entry.read_text().partition(" (")
            yield int(pid), int(rest.rpartition(") ")[2].split()[1])


def tell(pid: int, what: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
