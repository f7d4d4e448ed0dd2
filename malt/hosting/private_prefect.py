"""Which Prefect server a run reports to: the one at `PREFECT_API_URL`, else a private one that ends with this process.

Prefect reads its settings when it is imported, so `connect` comes before that. The private server starts in a process
of its own while the caller imports what else it needs, and is started again where it is killed: Prefect asks again for
a minute. Its records stay in `<data_dir>/prefect`.
"""

import atexit
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

from malt.errors import ConfigError
from malt.hosting.supervise import Starts

ANSWER_LIMIT_S = 10.0
"""Seconds a server that is up may take to answer."""
START_LIMIT_S = 120.0
"""Seconds a private one may take to start: 3 as a rule, 6 where it first makes a database."""
STOP_LIMIT_S = 6.0
"""Seconds it may take to write its records and end."""

CONSOLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
"""How grave a log line must be to be printed."""

TUNED = {
    # A task run costs the stock server 37.6 ms of CPU, with these and PRIVATE 7.7.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "300",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "DO_NOT_TRACK": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What any server of ours is set to."""
PRIVATE = {
    **TUNED,
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no UI, and only the services that a run needs
}
"""What serves a single run is set to."""


class NamedServer(NamedTuple):
    """The server at `PREFECT_API_URL`, which is not ours to start."""

    api_url: str
    when_lost: str = "run again when it is up"
    """What to do where it goes away during a run."""

    def wait_until_ready(self) -> None:
        """Check that it answers. Raises `ConfigError`."""
        check_answers(self.api_url)


def connect(data_dir: Path) -> "NamedServer | PrefectServer":
    """Set the environment that Prefect reads on import, and start a private server where no other is named.

    Raises `ConfigError`, as does waiting until the server can be asked, where that will not come.
    """
    os.environ.setdefault(CONSOLE, "CRITICAL")  # the command tells what happened
    if url := os.environ.get("PREFECT_API_URL"):
        return NamedServer(url)
    os.environ.update(direct_to_loopback())
    try:
        server = PrefectServer((data_dir / "prefect").resolve())
    except OSError as error:
        raise ConfigError(f"MALT_DATA_DIR = {data_dir}: {error}; choose a folder that can be written") from error
    os.environ.update(server.environment)
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # a row a task run, and nobody there to read it
    return server


def check_answers(api_url: str) -> None:
    """Check that somebody answers at `PREFECT_API_URL`; what is said there is for Prefect to judge."""
    try:
        urllib.request.urlopen(f"{api_url}/health", timeout=ANSWER_LIMIT_S).close()  # noqa: S310
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # Prefect has settings of its own for certificates
        raise ConfigError(
            f"PREFECT_API_URL = {api_url}: no server answers there ({getattr(error, 'reason', error)}); start it with "
            "`prefect server start`, or unset the variable for a private one"
        ) from error


class PrefectServer:
    """A Prefect server in a process of its own; it starts at once, and ends with this process however that ends."""

    def __init__(self, home: Path, port: int = 0, settings: Mapping[str, str] = PRIVATE) -> None:
        """Start it on a loopback port, any free one by default. Raises `OSError` where the port is taken."""
        home.mkdir(parents=True, exist_ok=True)
        self._home, self._settings = home, settings
        self.log = home / "server.log"
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        self._is_up, self._has_ended, self._stopping = False, False, threading.Lock()
        self._start(port)
        atexit.register(self.stop)

    def _start(self, port: int) -> None:
        with socket.create_server(("127.0.0.1", port), backlog=128) as listener, self.log.open("ab") as log:
            self.port = int(listener.getsockname()[1])
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    sys.executable,
                    "-m",
                    "malt.hosting.prefect_server",
                    str(listener.fileno()),
                    str(database_in(self._home)),
                ],
                stdin=subprocess.PIPE,  # its end tells the server that this process has ended
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                env={**os.environ, **self.environment, **self._settings, CONSOLE: "ERROR"},
                start_new_session=True,  # Ctrl-C is for the run, which still tells the server how it ended
            )

    def _keep_up(self) -> None:
        """Start it again, on its port, whenever it is killed; not for ever."""
        starts = Starts()
        while self.process.wait() < 0 and starts.again():
            with self._stopping:
                if not self._is_up:
                    return
                self._let_go()
                try:
                    self._start(self.port)
                except OSError:  # the port was taken meanwhile, or nothing more can be started here
                    break
        self._has_ended = self._is_up

    def _let_go(self) -> None:
        """Close what tells the server that this process is there."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def has_ended(self) -> bool:
        """Whether it has ended by itself, or was killed too often to be started again."""
        return self._has_ended

    @property
    def when_lost(self) -> str:
        """What to do where it went away during a run, for good: the next one starts another."""
        return f"run again ({self.log} has what it said last)"

    @property
    def api_url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """What makes Prefect use it."""
        return environment(self.api_url, self._home)

    def wait_until_ready(self) -> None:
        """Wait for the first answer: the socket is open already, so the question waits there. Raises `ConfigError`."""
        try:
            urllib.request.urlopen(f"{self.api_url}/health", timeout=START_LIMIT_S).close()  # noqa: S310
            self._is_up = True
            threading.Thread(target=self._keep_up, name="prefect-server", daemon=True).start()
        except OSError as error:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # its last words come as it ends
            raise ConfigError(
                f"the private Prefect server did not start: {last_words(self.log, self.log_start) or error} "
                f"(see {self.log}); mend that, or set PREFECT_API_URL to a server of your own"
            ) from error

    def stop(self, within_s: float = STOP_LIMIT_S) -> None:
        """End the server, once it has written its records; one that is not up yet has none."""
        atexit.unregister(self.stop)
        with self._stopping:
            was_up, self._is_up = self._is_up, False
        self._let_go()
        try:
            self.process.wait(within_s if was_up else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_words(log: Path, start: int) -> str:
    """Return the line of a process's log, from `start` on, that says most about its end."""
    with log.open(errors="replace") as lines_of:
        lines_of.seek(start)
        lines = [line.strip()[:300] for line in lines_of if line.strip()]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else "")


def direct_to_loopback() -> dict[str, str]:
    """Return what keeps calls to this machine out of a proxy that is meant for the others."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = listed if listed == "*" else ",".join(filter(None, (listed, "127.0.0.1")))
    return {"no_proxy": direct, "NO_PROXY": direct}


def environment(api_url: str, home: Path) -> dict[str, str]:
    """Return what makes Prefect use a private server, whatever its user has set up for others."""
    return {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILE": "ephemeral",
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database_in(home)}",
    }


def database_in(home: Path) -> Path:
    """Return where a private server keeps its records."""
    return home / "prefect.db"


def main() -> None:
    """Start a server once and end it: those to come find a database that is made (prefect_server.py)."""
    with tempfile.TemporaryDirectory() as home:
        server = PrefectServer(Path(home))
        server.wait_until_ready()
        server.stop()


if __name__ == "__main__":
    main()
