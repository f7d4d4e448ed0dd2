"""A PostgreSQL server for the tests, if PostgreSQL is installed."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

START_ATTEMPTS = 25


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an empty database on a server that stops when the tests end."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'malt-trees[postgres]'")
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with Postgres() as server:
        yield server.url("postgres")


class Postgres:
    """A server with its data in a temporary folder; a context manager."""

    @staticmethod
    def is_here() -> bool:
        return bool(shutil.which("initdb") and shutil.which("pg_ctl"))

    def __enter__(self) -> Self:
        # other users cannot enter pytest's temporary folders; PostgreSQL's children may still write during removal
        self._folder = tempfile.TemporaryDirectory(prefix="malt-postgres-", ignore_cleanup_errors=True)
        self._as_owner = unprivileged(self._folder.name)
        self._data, self._port = Path(self._folder.name) / "data", free_port()
        run([*self._as_owner, "initdb", "-D", self._data, "-U", "malt", "-A", "trust", "--no-sync"])
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        run([*self._as_owner, "pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop"])
        self._folder.cleanup()

    def start(self) -> None:
        """Start the server; retry, since the children of one that was killed take a moment to exit."""
        options = f"-p {self._port} -k {self._folder.name} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = f"{self._folder.name}/log"
        command: list[str | Path] = [
            *self._as_owner,
            "pg_ctl",
            "-D",
            self._data,
            "-o",
            options,
            "-l",
            log,
            "-w",
            "start",
        ]
        for _ in range(START_ATTEMPTS):
            try:
                return run(command)
            except subprocess.CalledProcessError:
                time.sleep(0.2)
        return run(command)

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def url(self, database: str) -> str:
        return f"postgresql://malt@127.0.0.1:{self._port}/{database}"

    def database(self, name: str) -> str:
        """Make an empty database, and return its URL."""
        run([*self._as_owner, "createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "malt", name])
        return self.url(name)


def unprivileged(folder: str) -> list[str]:
    """Return a command prefix that drops root, empty for other users: PostgreSQL refuses to run as root.

    The folder is given to `nobody`, as whom the command then runs.
    """
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    return [shutil.which("runuser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "runuser", "-u", "nobody", "--"]


def free_port() -> int:
    """Return a free port below the range that the system gives to outgoing connections, so that none takes it."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
