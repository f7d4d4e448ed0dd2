"""The process of a private Prefect server: `python -m malt.prefect_server SOCKET HOME`; private_prefect.py starts it.

It ends when its standard input does: the process that started it holds the other end, and loses it however it ends.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path

import uvicorn

from malt.loading import loading

STOP_LIMIT_S = 5.0
"""Seconds it may take to write its records once its time is over."""


def main() -> None:
    """Serve Prefect's API on an open socket until standard input ends."""
    listener, home = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        ws_per_message_deflate=False,  # events come from this machine
        timeout_graceful_shutdown=1,
    )
    server = StartsAlone(config, home / "starting.lock")
    threading.Thread(target=end_with_parent, args=(server,), daemon=True).start()
    with loading():
        config.load()
    server.run(sockets=[listener])


def end_with_parent(server: uvicorn.Server) -> None:
    """Wait for the parent's end, then end this process: cleanly once it serves, and if that can be done in time."""
    while os.read(0, 1024):
        pass
    if server.started:
        server.should_exit = True
        time.sleep(STOP_LIMIT_S)
    os._exit(1)


class StartsAlone(uvicorn.Server):
    """A server that makes or upgrades its database while no other does the same to it."""

    def __init__(self, config: uvicorn.Config, lock: Path) -> None:
        super().__init__(config)
        self._lock = lock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the lock, then start."""
        with self._lock.open("a") as lock, loading():
            fcntl.flock(lock, fcntl.LOCK_EX)
            await super().startup(sockets)


if __name__ == "__main__":
    main()
