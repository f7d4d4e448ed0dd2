"""Which Prefect server a run reports to: the one at `PREFECT_API_URL`, else a private one that ends with this process.

Prefect reads its settings when it is imported, so `connect` comes before that. The private server starts in a process
of its own while the caller imports what else it needs; its records stay in `<data_dir>/prefect`.
"""

import atexit
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Protocol

from malt.errors import ConfigError

START_LIMIT_S = 120.0
"""Seconds a private server may take to answer: 3 as a rule, more where it first makes its database."""
STOP_LIMIT_S = 6.0
"""Seconds it may take to write its records and end."""

QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the command tells what happened

TUNED = {
    # A task run costs the stock server 37.6 ms of CPU, with these 7.7.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "300",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "DO_NOT_TRACK": "1",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no UI, and only the services that a run needs
    "PREFECT__SERVER_FINAL": "1",
}


class Server(Protocol):
    """A Prefect server that this process reports to."""

    def wait_until_ready(self) -> None:
        """Return once it can be asked. Raises `ConfigError` where that will not come."""


def connect(data_dir: Path) -> Server:
    """Set the environment that Prefect will read on import; starts a private server where none is named."""
    os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}
    if url := os.environ.get("PREFECT_API_URL"):
        return NamedServer(url)
    server = PrivateServer((data_dir / "prefect").resolve())
    os.environ |= server.environment
    return server


class NamedServer:
    """The server at `PREFECT_API_URL`: its user's own affair, up or not."""

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url

    def wait_until_ready(self) -> None:
        """Return at once; the first call to it will tell."""


class PrivateServer:
    """A Prefect server in a process of its own; it starts at once, and ends with this process however that ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._log = home / "server.log"
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, self._log.open("ab") as log:
            self._log_start = log.tell()
            api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self.environment = {
                "PREFECT_API_URL": api_url,
                "PREFECT_HOME": str(home),
                "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),  # none: the user's own profile is for other servers
                "PREFECT_LOGGING_TO_API_ENABLED": "false",  # one row a task run, for a server that ends with the run
            }
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "malt.prefect_server", str(listener.fileno()), str(home)],
                stdin=subprocess.PIPE,  # its end tells the server that this process has ended
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                env={**os.environ, **self.environment, **TUNED},
                start_new_session=True,  # Ctrl-C is for the run, which still tells the server how it ended
            )
        self.api_url = api_url
        atexit.register(self.stop)

    def wait_until_ready(self) -> None:
        """Wait for the first answer; the socket is open already, so the question waits there."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=START_LIMIT_S):  # noqa: S310
                return
        except OSError as error:
            raise ConfigError(
                f"the private Prefect server did not start: {self._last_words() or error} (see {self._log}); "
                "mend that, or set PREFECT_API_URL to a server of your own"
            ) from error

    def _last_words(self) -> str:
        with self._log.open(errors="replace") as log:
            log.seek(self._log_start)
            return next((line.strip()[:300] for line in reversed(log.readlines()) if line.strip()), "")

    def stop(self) -> None:
        """End the server, once it has written its records."""
        atexit.unregister(self.stop)
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
