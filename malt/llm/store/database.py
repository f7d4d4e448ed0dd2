"""The database below the store: its address, its connections, and what its errors mean."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from malt.errors import StoreError
from malt.private_files import PRIVATE_FILE, make_private_folder

_DRIVERS = ("sqlite", "postgresql+psycopg")
_CONNECTING = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "client_encoding": "utf8",
}
"""After how long a PostgreSQL server that says nothing more counts as away (libpq's names; seconds, milliseconds)."""

_READ_ONLY = "25006"
"""PostgreSQL's code for a write to a database that takes none, as a standby's."""


def make_engine(url: str) -> sa.Engine:
    """Return what connects to a database. Raises `StoreError` for one that cannot be a store; it need not be there."""
    try:
        parsed = parse_url(url)
        if parsed.drivername == "sqlite" and parsed.database:
            make_private_folder(Path(parsed.database).parent)
        engine = sa.create_engine(
            parsed, connect_args=_CONNECTING if parsed.drivername.startswith("postgresql") else {}
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(f"MALT_STORE_URL {hide_password(url)!r} is not a usable database URL: {error}") from error
    except ModuleNotFoundError as error:
        needed = f"the store {hide_password(url)} needs the package {error.name!r}"
        raise StoreError(f"{needed}: install malt-trees[postgres]") from error
    except OSError as error:
        raise StoreError(
            f"the folder of the store {hide_password(url)} cannot be made: {error}; "
            "set MALT_DATA_DIR to one that can be written"
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "do_connect", _create_privately)
        sa.event.listen(engine, "connect", _tune_sqlite)
    return engine


def _create_privately(_dialect: object, _record: object, arguments: tuple[object, ...], _named: object) -> None:
    """Create a new database as this user's alone; SQLite gives its other files the same mode."""
    path = Path(str(arguments[0]))
    if not path.exists():
        with suppress(OSError):  # the connection says why it cannot be made
            path.touch(mode=PRIVATE_FILE)


def _tune_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """WAL lets readers and one writer work at once; with it, NORMAL loses nothing when a process is killed."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 60000")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def parse_url(url: str) -> URL:
    """Read a database URL; plain `postgresql://` means the psycopg driver, the one that is installed with malt.

    Raises `ArgumentError` for a database that cannot be a store.
    """
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in _DRIVERS:
        raise ArgumentError(f"a store is {' or '.join(_DRIVERS)}, not {parsed.drivername}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ArgumentError("a store in memory would lose what was paid for; name a file, sqlite:///store.db")
    return parsed


def hide_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return re.sub(r":[^:/@]*@", ":***@", url)


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn what the database raises into a `StoreError` that names the store."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(describe_error(url, error)) from error


def describe_error(url: str, error: DBAPIError) -> str:
    return f"the store {hide_password(url)} cannot be used: {' '.join(str(error.orig).split())}"


def is_transient(error: DBAPIError) -> bool:
    """Whether an error may pass by itself: no connection, a restart, no room, a lock, a database that is read-only for
    now; not a table that is missing.
    """
    if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        return False
    is_read_only = getattr(error.orig, "sqlstate", None) == _READ_ONLY
    return error.connection_invalidated or is_read_only or isinstance(error, OperationalError)
