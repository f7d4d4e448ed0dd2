"""The PostgreSQL server of `malt up --postgres`."""

import os
import stat
from pathlib import Path

import pytest

from malt.errors import ConfigError
from malt.hosting.postgres import PostgresServer

IS_ROOT = os.geteuid() == 0


@pytest.mark.skipif(not IS_ROOT, reason="PostgreSQL refuses root alone")
def test_root_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as another user, or name a server with PREFECT_SERVER_DATABASE_CONNECTION"):
        PostgresServer(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(IS_ROOT, reason="PostgreSQL does not run as root")
def test_the_server_is_reachable_by_its_user_only_and_restarts_with_its_data(tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    for number in range(2):
        server = PostgresServer(tmp_path / "home")
        url = server.url.replace("+asyncpg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
            connection.execute("INSERT INTO kept VALUES (%s)", [number])
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (number + 1,)
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
    assert stat.S_IMODE((tmp_path / "home" / "postgres").stat().st_mode) == 0o700
