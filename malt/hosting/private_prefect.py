"""Prefect server of a run: the one at `PREFECT_API_URL`, else a private one that ends with this process.

Prefect reads its settings on import, so call `connect` before that. The private server starts in a process of its own
while the caller imports other modules, and is restarted if it is killed, since Prefect's clients retry for a minute.
Its records stay in `<data_dir>/prefect`.
"""

import atexit
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError

from malt.config.secret_scan import redact
from malt.errors import ConfigError
from malt.files import PRIVATE_FOLDER, is_full, make_private_folder
from malt.hosting.access import AUTH_STRING, WILDCARDS, own_origins, read_auth_string, warn_if_open
from malt.processes import Restarts

ANSWER_LIMIT_S = 30.0
"""Seconds that a running server may take to answer."""
_START_LIMIT_S = 300.0
"""Seconds that a private server may take to start: usually 3, with a new database 6, on a very busy machine minutes.
A server that ends meanwhile is noticed at once."""
_STOP_LIMIT_S = 6.0
"""Seconds that a private server may take to write its records and end."""

_CONSOLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
"""Setting for the lowest level of log lines on the console."""

TUNED = {
    # A task run takes 37.6 ms of the server's CPU by default, and 7.7 ms with these and PRIVATE.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "300",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    # Leases kept in memory are lost when the server restarts, and Prefect then ends their runs within four minutes.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "DO_NOT_TRACK": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""Settings of every server that MALT starts."""
PRIVATE = {
    **TUNED,
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no UI, and only the services that a run needs
}
"""Settings of a server for a single run."""


class NamedServer(NamedTuple):
    """The server at `PREFECT_API_URL`, which the user runs."""

    api_url: str
    when_lost: str = "run again when it is up"
    """Advice if the server is lost during a run."""

    def wait_until_ready(self) -> None:
        """Check that the server answers, and warn if it has no authentication. Raises `ConfigError`."""
        check_answers(self.api_url)
        warn_if_open(self.api_url, ANSWER_LIMIT_S)


def connect(data_dir: Path) -> "NamedServer | PrefectServer":
    """Set the environment that Prefect reads on import, and start a private server unless PREFECT_API_URL is set.

    Raises `ConfigError` if the server cannot be started; `wait_until_ready` of the result raises it too.
    """
    os.environ.setdefault(_CONSOLE, "CRITICAL")  # the command line reports the run itself
    os.environ.setdefault("DO_NOT_TRACK", "1")  # else Prefect's client sends usage data
    if url := os.environ.get("PREFECT_API_URL"):
        return NamedServer(url)
    os.environ.update(direct_to_loopback())
    server = _start_server(data_dir)
    os.environ.update(server.environment)
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # a private server has no UI to read its log rows in
    return server


def _start_server(data_dir: Path) -> "PrefectServer":
    try:
        return PrefectServer((data_dir / "prefect").resolve())
    except OSError as error:
        raise ConfigError(f"MALT_DATA_DIR = {data_dir}: {error}; choose a folder that can be written") from error


def check_answers(api_url: str) -> None:
    """Check that a server answers at `PREFECT_API_URL`, whatever it answers. Raises `ConfigError`."""
    try:
        urllib.request.urlopen(f"{api_url}/health", timeout=ANSWER_LIMIT_S).close()  # noqa: S310
    except HTTPError:
        return
    except (ValueError, HTTPException):  # their messages may quote secrets of the URL, or the reply
        raise ConfigError(
            f"PREFECT_API_URL = {redact(api_url)}: that is no address of a Prefect server; write http://HOST:PORT/api"
        ) from None
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # certificates are checked by Prefect, by its own settings
        why = getattr(error, "reason", error)
        raise ConfigError(
            f"PREFECT_API_URL = {redact(api_url)}: no server answers there ({why}); start it with "
            "`prefect server start`, or unset the variable for a private one"
        ) from error


class PrefectServer:
    """A Prefect server in a process of its own; it starts at once, and ends with this process in any case.

    Clients need its authentication string; `environment` passes it to Prefect's.
    """

    def __init__(
        self, home: Path, port: int = 0, settings: Mapping[str, str] = PRIVATE, host: str = "127.0.0.1"
    ) -> None:
        """Start the server on a port, any free one by default. Raises `OSError` if that fails."""
        make_private_folder(home)
        home.chmod(PRIVATE_FOLDER)
        self.auth_string = read_auth_string(home)
        self._home, self._host, self._settings = home, host, settings
        self.log = home / "server.log"
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        self._is_up, self._has_ended, self._stopping = False, False, threading.Lock()
        self._start(port)
        atexit.register(self.stop)

    def _start(self, port: int) -> None:
        with socket.create_server((self._host, port), backlog=128) as listener, _open_log(self.log) as log:
            self.port = int(listener.getsockname()[1])
            arguments = (str(listener.fileno()), str(self._home), self._host)
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "malt.hosting.prefect_server", *arguments],
                stdin=subprocess.PIPE,  # closed when this process ends, which stops the server
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                env={**os.environ, **self.environment, **self._access_settings, **self._settings, _CONSOLE: "ERROR"},
                start_new_session=True,  # keeps Ctrl-C from the server: the run still has to report its end to it
            )

    @property
    def _access_settings(self) -> dict[str, str]:
        return {
            "PREFECT_SERVER_API_AUTH_STRING": self.auth_string,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(self._host, self.port)),
        }

    def _keep_up(self) -> None:
        """Restart a killed server on its port, unless it was killed too often."""
        restarts = Restarts()
        while self.process.wait() < 0 and restarts.grant(time.monotonic()) and self._start_again():
            pass
        self._has_ended = self._is_up

    def _start_again(self) -> bool:
        with self._stopping, suppress(OSError):  # the port was taken meanwhile, or no process can be started
            if self._is_up:
                self._close_stdin()
                self._start(self.port)
                return True
        return False

    def _close_stdin(self) -> None:
        """Close the server's standard input, which stops it."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def has_ended(self) -> bool:
        """Whether the server has ended by itself, or was killed too often to be restarted."""
        return self._has_ended

    @property
    def when_lost(self) -> str:
        """Advice if the server was lost for good during a run."""
        if is_full(self._home):
            return f"the disk of {self._home} is full; make room, and run again"
        return f"run again ({self.log} has the server's last messages)"

    @property
    def api_url(self) -> str:
        """URL of the API for clients on this machine."""
        host = "127.0.0.1" if self._host in (*WILDCARDS, "localhost") else self._host
        return f"http://{host}:{self.port}/api"

    @property
    def client_settings(self) -> dict[str, str]:
        """Environment variables with which a Prefect client can reach this server."""
        return {"PREFECT_API_URL": self.api_url, AUTH_STRING: self.auth_string}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make Prefect use this server, and ignore the user's own profiles."""
        return {
            **self.client_settings,
            "PREFECT_HOME": str(self._home),
            "PREFECT_PROFILE": "ephemeral",
            "PREFECT_PROFILES_PATH": str(self._home / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._home / 'prefect.db'}",
        }

    def wait_until_ready(self) -> None:
        """Wait for the first answer; the socket is open already and queues the request. Raises `ConfigError`."""
        try:
            urllib.request.urlopen(f"{self.api_url}/health", timeout=_START_LIMIT_S).close()  # noqa: S310
            self._is_up = True
            threading.Thread(target=self._keep_up, name="prefect-server", daemon=True).start()
        except OSError as error:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # its last log lines are written as it ends
            raise ConfigError(
                f"the private Prefect server did not start: {last_line(self.log, self.log_start) or error} "
                f"(see {self.log}); fix that, or set PREFECT_API_URL to a server of your own"
            ) from error

    def stop(self, within_s: float = _STOP_LIMIT_S) -> None:
        """Stop the server after it has written its records; kill it at once if it is not up yet and has none."""
        atexit.unregister(self.stop)
        with self._stopping:
            was_up, self._is_up = self._is_up, False
        self._close_stdin()
        try:
            self.process.wait(within_s if was_up else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _open_log(path: Path) -> BinaryIO:
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def last_line(log: Path, start: int) -> str:
    """Return the last error line of a log from offset `start` on, else the last line."""
    with log.open(errors="replace") as text:
        text.seek(start)
        lines = [line.strip()[:300] for line in text if line.strip()]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else "")


def direct_to_loopback() -> dict[str, str]:
    """Return environment variables that exempt this machine from the HTTP proxy."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = listed if listed == "*" else ",".join(filter(None, (listed, "127.0.0.1")))
    return {"no_proxy": direct, "NO_PROXY": direct}


def main() -> None:
    """Start a server once and stop it, so that prefect_server.py caches an empty database for later servers."""
    with tempfile.TemporaryDirectory() as home:
        server = PrefectServer(Path(home))
        server.wait_until_ready()
        server.stop()


if __name__ == "__main__":
    main()
