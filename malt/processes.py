"""Process liveness, niceness and restarts, the machine's id, and imports without garbage collection."""

import gc
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_RESTARTS, _WITHIN_S = 5, 60.0
_TRIES = 10


@contextmanager
def paused_gc() -> Iterator[None]:
    """Import without garbage collection: each collection would walk modules that live as long as the process."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def is_running(pid: int) -> bool:
    """Whether a process of this machine is alive, whichever user owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def weigh_session(pid: int) -> None:
    """Give a session leader's niceness to its session: Linux weighs sessions first, and new ones all alike."""
    niceness = os.getpriority(os.PRIO_PROCESS, pid)
    if not niceness or os.getsid(pid) != pid:
        return
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
        except BlockingIOError:  # Linux accepts ten writes a second from a user
            time.sleep(0.1)
        except OSError:  # no sessions to weigh on this system, only processes
            return
        else:
            return


@cache
def machine_id() -> str:
    """Return an id of the machine or container whose processes `is_running` sees; the host name alone is not unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these files
        parts += [_BOOT_ID.read_text().strip(), _PID_NAMESPACE.readlink().name]
    return "/".join(parts)


def wait_for_parent() -> None:
    """Block until the parent process ends: it holds the write end of our standard input, so its death closes it."""
    while os.read(0, 1024):
        pass


class Restarts:
    """Limit of five restarts a minute, so that a process that keeps dying at once is given up."""

    def __init__(self) -> None:
        self._granted: deque[float] = deque(maxlen=_RESTARTS)

    def grant(self, now: float) -> bool:
        """Grant a restart, or return False if too many were granted; `now` is in seconds of any one clock."""
        if len(self._granted) == _RESTARTS and now - self._granted[0] < _WITHIN_S:
            return False
        self._granted.append(now)
        return True
