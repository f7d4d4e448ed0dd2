"""A command that lasts as long as the process that started it, and no longer: `python -m malt.tied COMMAND…`.

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
    """Keep a command running until it ends by itself, or until standard input does."""
    adopt_orphans()
    ending, starts = threading.Event(), Starts()
    thread = threading.Thread(target=end_with_parent, args=(ending,), daemon=True)
    thread.start()
    while (code := subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)) < 0:  # noqa: S603 - our caller's command
        if ending.is_set() or not starts.again():
            break
        print(f"{' '.join(sys.argv[1:])}: killed by signal {-code}; started again", file=sys.stderr, flush=True)
    if ending.is_set():
        thread.join()
    sys.exit(code)


def adopt_orphans() -> None:
    """Stay the parent of what a killed command leaves behind, where the system can do that."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_with_parent(ending: threading.Event) -> None:
    """Wait for the parent's end, then end all below this process: politely at first."""
    while os.read(0, 1024):
        pass
    ending.set()
    family = descendants(os.getpid())
    for pid in family:
        tell(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_LIMIT_S
    while any(map(is_running, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in family:
        tell(pid, signal.SIGKILL)


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
