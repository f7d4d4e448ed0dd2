"""Processes: whether another one lives, ends or is to be started again, and imports without garbage collection."""

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
    """Whether a process of this machine is alive, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def weigh_session(pid: int) -> None:
    """Give the session that a process leads the process's niceness: Linux weighs sessions first, and new ones alike."""
    niceness = os.getpriority(os.PRIO_PROCESS, pid)
    if not niceness or os.getsid(pid) != pid:
        return
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
        except BlockingIOError:  # Linux takes ten a second from users
            time.sleep(0.1)
        except OSError:  # other systems weigh processes alone
            return
        else:
            return


@cache
def machine_id() -> str:
    """Name the machine or container whose processes `is_running` can see; equal host names do not make two one."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux tells
        parts += [_BOOT_ID.read_text().strip(), _PID_NAMESPACE.readlink().name]
    return "/".join(parts)


def wait_for_parent() -> None:
    """Wait until standard input ends: who started this process holds the other end, and loses it however that ends."""
    while os.read(0, 1024):
        pass


class Restarts:
    """Grants five restarts a minute: what lasts is started again whenever it is killed, what does not is given up."""

    def __init__(self) -> None:
        self._granted: deque[float] = deque(maxlen=_RESTARTS)

    def grant(self, now: float) -> bool:
        """Say whether it may be started again; `now` is in seconds of one clock."""
        if len(self._granted) == _RESTARTS and now - self._granted[0] < _WITHIN_S:
            return False
        self._granted.append(now)
        return True
