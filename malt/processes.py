"""Processes: whether another one is alive, and imports without garbage collection in this one."""

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


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


@cache
def machine_id() -> str:
    """Name the machine or container whose processes `is_running` can see; equal host names do not make two one."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux tells
        parts += [_BOOT_ID.read_text().strip(), _PID_NAMESPACE.readlink().name]
    return "/".join(parts)
