"""Whether another process is alive, and where its number means the same as here."""

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
NUMBERS = Path("/proc/self/ns/pid")
"""Tells the processes that share their numbers: those of a machine, or of one container."""


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def here() -> str:
    """Name the machine or container whose processes `is_running` can see; equal host names do not make two one."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux tells
        parts += [BOOT.read_text().strip(), NUMBERS.readlink().name]
    return "/".join(parts)
