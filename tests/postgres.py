"""A PostgreSQL server of the tests' own, where this machine has one."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database, on a server that ends with the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'malt-trees[postgres]'")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("postgres")))
    as_owner = unprivileged(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run([*as_owner, "initdb", "-D", folder / "data", "-U", "malt", "-A", "trust"])
    run([*as_owner, "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start"])
    yield f"postgresql://malt@127.0.0.1:{port}/postgres"
    run([*as_owner, "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop"])


def unprivileged(folder: Path) -> list[str]:
    """Return the beginning of commands that run as whoever owns a folder: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    for above in folder.parents[:3]:
        above.chmod(above.stat().st_mode | 0o055)
    return ["runuser", "-u", "nobody", "--"]


def run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
