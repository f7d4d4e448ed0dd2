"""A command that ends with the process that started it: `python -m malt.tied COMMAND…`.

It is told to end when standard input does: whoever started it holds the other end, and loses it however it ends. What
the command itself started, in sessions of their own too, ends with it.
"""

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


def main() -> None:
    """Run a command until it ends, or until standard input does."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - our caller's command
    ending = threading.Event()
    thread = threading.Thread(target=end_with_parent, args=(command, ending), daemon=True)
    thread.start()
    code = command.wait()
    if ending.is_set():
        thread.join()
    sys.exit(code)


def end_with_parent(command: "subprocess.Popen[bytes]", ending: threading.Event) -> None:
    """Wait for the parent's end, then end the command and all below it: politely at first."""
    while os.read(0, 1024):
        pass
    ending.set()
    family = [command.pid, *descendants(command.pid)]
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
