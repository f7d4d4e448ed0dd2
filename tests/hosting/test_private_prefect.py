"""A run's private Prefect server: it starts or reports why it cannot, and never outlives the process that began it."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from malt.cli.runs import describe_loss
from malt.errors import ConfigError
from malt.hosting.access import auth_headers
from malt.hosting.prefect_server import copy_database
from malt.hosting.private_prefect import NamedServer, PrefectServer, connect
from tests.postgres import free_port

HOLDER = """
import sys, time
from pathlib import Path
from malt.hosting.private_prefect import PrefectServer
server = PrefectServer(Path(sys.argv[1]))
server.wait_until_ready()
print(server.api_url, flush=True)
time.sleep(600)
"""
WRITES_AND_IS_KILLED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA journal_mode = WAL")
database.execute(f"CREATE TABLE {sys.argv[2]} (x)")
os.kill(os.getpid(), signal.SIGKILL)
"""
STOPPED_WITHIN_S = 120.0
"""Limit in seconds for a busy machine; a server that is not told to stop never does."""


@pytest.fixture
def environment() -> Iterator[None]:
    """Restore this process's environment after the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def is_listening(api_url: str) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", urlsplit(api_url).port or 0)) == 0


def ends_within(seconds: float, api_url: str) -> bool:
    deadline = time.monotonic() + seconds
    while is_listening(api_url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as reading:
        return str(reading.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def rows(database: Path) -> int:
    """Count the rows of all tables except the revision's."""
    with closing(sqlite3.connect(database)) as reading:
        tables = [name for (name,) in reading.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(int(reading.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]) for name in tables) - 1


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database made by set-up in a separate cache, in place of an unreadable file."""
    caches = tmp_path_factory.mktemp("caches")
    path = caches / "malt" / f"prefect-{version('prefect')}.db"
    path.parent.mkdir()
    path.write_text("no database at all" * 100)
    made = [sys.executable, "-m", "malt.hosting.private_prefect"]
    subprocess.run(made, check=True, env={**os.environ, "XDG_CACHE_HOME": str(caches)})
    assert rows(path) == 0
    return path


def test_two_servers_at_once_start_and_end_with_their_processes_and_a_killed_one_restarts(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use one new database, a copy of the one made by set-up. The process of one server is killed; the other
    server is killed itself, restarts at its address and still knows the held slots. An existing database is not cached.
    """
    caches = shutil.copytree(kept.parents[1], tmp_path / "caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    with closing(sqlite3.connect(caches / "malt" / kept.name)) as marking:
        marking.execute("PRAGMA user_version = 7")
    own = PrefectServer(tmp_path / "prefect")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "prefect")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        others_url = holder.stdout.readline().strip()
        own.wait_until_ready()
        assert is_listening(own.api_url)
        assert is_listening(others_url)
        holder.kill()
    assert ends_within(STOPPED_WITHIN_S, others_url)
    shutil.rmtree(caches)
    kill_and_ask_again(own)
    own.stop()
    assert not is_listening(own.api_url)
    assert not own.has_ended()
    assert not caches.exists()
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as reading:
        assert reading.execute("PRAGMA user_version").fetchone() == (7,)
    assert revision(tmp_path / "prefect" / "prefect.db") == revision(kept)


def kill_and_ask_again(server: PrefectServer) -> None:
    """Take a slot, kill the server, and renew the slot at the restarted server."""
    headers = auth_headers(server.auth_string)
    with httpx.Client(base_url=server.api_url, headers=headers, timeout=60) as client:
        client.post("/v2/concurrency_limits/", json={"name": "slots", "limit": 1}).raise_for_status()
        wanted = {"names": ["slots"], "slots": 1}
        held = client.post("/v2/concurrency_limits/increment-with-lease", json=wanted).raise_for_status()
    before = server.process.pid
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + STOPPED_WITHIN_S
    while server.process.pid == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    renewal = f"{server.api_url}/v2/concurrency_limits/leases/{held.json()['lease_id']}/renew"
    again = httpx.post(renewal, headers=headers, json={}, timeout=300)  # the server is just starting
    assert again.status_code == httpx.codes.NO_CONTENT


def test_a_server_that_is_stopped_while_it_starts_ends(tmp_path: Path) -> None:
    server = PrefectServer(tmp_path / "prefect")
    server.stop()
    assert not is_listening(server.api_url)


def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("no database at all" * 100)
    server = PrefectServer(tmp_path)
    with pytest.raises(ConfigError, match=r"file is not a database.*server\.log.*PREFECT_API_URL") as failed:
        server.wait_until_ready()
    assert len(str(failed.value).splitlines()) == 1
    server.stop()


@pytest.mark.usefixtures("environment")
def test_a_data_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    os.environ.pop("PREFECT_API_URL", None)
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ConfigError, match=r"MALT_DATA_DIR = .*data.*choose a folder"):
        connect(tmp_path / "data")


@pytest.mark.usefixtures("environment")
def test_a_named_server_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    free = free_port()
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{free}/api"
    with pytest.raises(ConfigError, match=rf"PREFECT_API_URL = http://127.0.0.1:{free}/api.*unset"):
        connect(tmp_path).wait_until_ready()
    os.environ["PREFECT_API_URL"] = f"http://me:s3cret@127.0.0.1:{free}/api?token=s3cret"
    with pytest.raises(ConfigError, match="no server answers there") as said:
        connect(tmp_path).wait_until_ready()
    assert "s3cret" not in str(said.value)
    os.environ["PREFECT_API_URL"] = "http://me:s3cret@127.0.0.1/api"
    with pytest.raises(ConfigError, match="no address of a Prefect server") as said:
        connect(tmp_path).wait_until_ready()
    assert "s3cret" not in str(said.value)
    assert not (tmp_path / "prefect").exists()


def test_the_advice_on_a_lost_server_depends_on_its_owner(tmp_path: Path) -> None:
    error, named = ConnectionError("refused"), NamedServer("http://prefect:4200/api")
    own = PrefectServer(tmp_path)
    own.stop()
    assert describe_loss(named, error).endswith("in the store are kept: run again when it is up")
    assert f"in the store are kept: run again ({own.log} has" in describe_loss(own, error)


def test_a_removed_database_s_leftover_journal_does_not_change_the_copy(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept.db", tmp_path / "new.db"
    for path in (kept, new):
        subprocess.run([sys.executable, "-c", WRITES_AND_IS_KILLED, path, path.stem], check=False)
    new.unlink()
    assert copy_database(kept, new)
    with closing(sqlite3.connect(new)) as reading:
        assert reading.execute("SELECT name FROM sqlite_master").fetchall() == [("kept",)]


def test_a_failed_copy_of_the_database_is_not_fatal(tmp_path: Path) -> None:
    """The server then creates its database itself."""
    nowhere, own = tmp_path / "file" / "malt" / "prefect.db", tmp_path / "prefect.db"
    (tmp_path / "file").touch()
    sqlite3.connect(own).close()
    assert not copy_database(nowhere, own)
    assert not copy_database(own, nowhere)
