"""A PostgreSQL server of the tests' own, where this machine has one."""

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
    """The URL of an empty database, on a server that ends with the tests."""
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
        # pytest's own are closed to other users; the server's children may still write as it is removed
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
        """Start it, or start it again where it was killed: its children may take a moment to notice that."""
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
        """The postmaster's."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def url(self, database: str) -> str:
        return f"postgresql://malt@127.0.0.1:{self._port}/{database}"

    def database(self, name: str) -> str:
        """Make an empty database, and return its URL."""
        run([*self._as_owner, "createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "malt", name])
        return self.url(name)


def unprivileged(folder: str) -> list[str]:
    """Return the beginning of commands that run as the owner of a folder: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    return [shutil.which("runuser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "runuser", "-u", "nobody", "--"]


def free_port() -> int:
    """Return a port that is free, and given to no connection by chance before it is used: those get higher ones."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
