"""A PostgreSQL server of the tests' own, where this machine has one."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty database, on a server that ends with the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'malt-trees[postgres]'")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with tempfile.TemporaryDirectory(prefix="malt-postgres-") as folder:  # pytest's own are closed to other users
        as_owner, data = unprivileged(folder), Path(folder) / "data"
        port = free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run([*as_owner, "initdb", "-D", data, "-U", "malt", "-A", "trust"])
        run([*as_owner, "pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start"])
        yield f"postgresql://malt@127.0.0.1:{port}/postgres"
        run([*as_owner, "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"])


def unprivileged(folder: str) -> list[str]:
    """Return the beginning of commands that run as the owner of a folder: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    return [shutil.which("runuser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "runuser", "-u", "nobody", "--"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
