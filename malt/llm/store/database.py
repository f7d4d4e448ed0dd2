"""The store's database: URL, connections, tables, and translation of its errors."""

import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.schema import CreateIndex, CreateTable

from malt.errors import StoreError
from malt.files import PRIVATE_FILE, make_private_folder

_DRIVERS = ("sqlite", "postgresql+psycopg")
_CONNECTING = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "client_encoding": "utf8",
}
"""Time-outs after which a silent PostgreSQL server counts as gone (libpq's names; in s, `tcp_user_timeout` in ms)."""

_READ_ONLY = "25006"
"""PostgreSQL's error code for a write to a read-only database, such as a standby."""


def make_engine(url: str) -> sa.Engine:
    """Return the engine of a database, which need not exist yet. Raises `StoreError` for one that cannot be a store."""
    try:
        parsed = parse_url(url)
        if parsed.drivername == "sqlite" and parsed.database:
            make_private_folder(Path(parsed.database).parent)
        engine = sa.create_engine(
            parsed, connect_args=_CONNECTING if parsed.drivername.startswith("postgresql") else {}
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:  # a ValueError may quote a part of the password
        why = "its host or port cannot be read" if isinstance(error, ValueError) else error
        raise StoreError(f"MALT_STORE_URL {hide_password(url)!r} is not a usable database URL: {why}") from None
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
    """Create a new database file readable by this user only; SQLite gives its other files the same mode."""
    if not (path := Path(str(arguments[0]))).exists():
        with suppress(OSError):  # connecting then fails with a better error
            path.touch(mode=PRIVATE_FILE)


def _tune_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Set WAL, so that readers and one writer work at once; NORMAL then loses nothing when a process is killed."""
    with closing(connection.cursor()) as cursor:
        for setting in ("busy_timeout = 60000", "journal_mode = WAL", "synchronous = NORMAL"):
            cursor.execute(f"PRAGMA {setting}")


def parse_url(url: str) -> URL:
    """Parse a database URL; plain `postgresql://` selects psycopg, the driver that is installed with malt.

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
    """Hide user and password, even in a malformed URL; a SQLite path may contain an @."""
    shown = url if url.startswith("sqlite") else re.sub("://.*@", "://***@", url)
    return re.sub(r"(?i)([?&][^=&]*passw(?:or)?d=)[^&]*", r"\1***", shown)


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise StoreError(describe_error(url, error)) from error


def describe_error(url: str, error: DBAPIError) -> str:
    return f"the store {hide_password(url)} cannot be used: {' '.join(str(error.orig).split())}"


def is_transient(error: DBAPIError) -> bool:
    """Whether an error may pass by itself: no connection, a restart, a full disk, a lock, or a temporarily read-only
    database; a missing table does not.
    """
    if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        return False
    is_read_only = getattr(error.orig, "sqlstate", None) == _READ_ONLY
    return error.connection_invalidated or is_read_only or isinstance(error, OperationalError)


FORMAT = 1
"""Version of the tables below; a store with a higher one was written by a newer malt."""

_OPEN_ATTEMPTS = 80
"""Attempts to open a store that other processes are creating: a minute in all."""
_STORE_LOCK = 0x6D616C74
"""Number of the advisory lock under which tables are created in PostgreSQL."""

metadata = sa.MetaData()

_COLUMN_TYPES = {str: sa.Text, int: sa.BigInteger, float: sa.Float, bool: sa.Boolean}


def declare_table(name: str, row: type, indexed: Collection[str]) -> sa.Table:
    """Return the table of a row type: one column per field, the first is the key; optional fields are nullable."""
    columns: list[sa.Column[Any]] = []
    for place, (column, kind) in enumerate(get_type_hints(row).items()):
        kinds = get_args(kind) or (kind,)
        nullable, index = NoneType in kinds, column in indexed
        columns.append(
            sa.Column(column, _COLUMN_TYPES[kinds[0]], primary_key=not place, nullable=nullable, index=index)
        )
    return sa.Table(name, metadata, *columns)


def insert_into(connection: sa.Connection | sa.Engine, table: sa.Table) -> Any:  # noqa: ANN401 - a class for each dialect
    """Return the dialect's insert statement, which supports ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


@dataclass(frozen=True, slots=True)
class StoredSample:
    """Row of one sample: its request, and the response or the error. Exactly one of `response` and `error` is set."""

    key: str
    question_id: str
    role: str
    model: str
    """Requested model, as the config names it."""
    address: str
    """Address of the parent node in the question's tree; empty for the root and for the evaluator."""
    sample: int
    response: str | None = None
    """Provider's response as JSON, with only this sample's choice."""
    error: str | None = None
    """Reason why there is no answer."""
    cost_usd: float | None = None
    """This sample's share of its request's cost; None where unknown."""
    latency_s: float = 0.0
    created_at: float = field(default_factory=time.time)
    run: str = ""
    """Name of the run that made the request; empty where none was named."""


samples_table = declare_table("samples", StoredSample, ["question_id"])
format_table = sa.Table("store_format", metadata, sa.Column("version", sa.Integer, primary_key=True))

known_urls: set[str] = set()
"""URLs of stores that this process, or another one of its run, has opened before."""


def expect_store(url: str) -> None:
    """Register a store that another process of the run has opened, so that this one waits for it where it is away."""
    known_urls.add(url)


def open_engine(url: str) -> sa.Engine:
    """Connect, check the format and create missing tables. Raises `StoreError`."""
    engine = make_engine(url)
    try:
        with database_errors(url):
            _retry_while_locked(lambda: _create_or_check(engine, url))
    except StoreError:
        engine.dispose()
        raise
    known_urls.add(url)
    return engine


def _retry_while_locked(open_store: Callable[[], None]) -> None:
    """Retry while other processes create the same store: SQLite does not wait for the lock to switch to WAL."""
    for attempt in range(_OPEN_ATTEMPTS):
        try:
            open_store()
        except OperationalError as error:
            is_locked = any(sign in str(error.orig) for sign in ("locked", "deadlock"))
            if not is_locked or attempt == _OPEN_ATTEMPTS - 1:
                raise
            time.sleep(0.02 * (attempt + 1))
        else:
            return


def _create_or_check(engine: sa.Engine, url: str) -> None:
    with engine.begin() as connection:
        create_tables(connection)
        is_postgres = engine.dialect.name == "postgresql"
        if is_postgres and (encoding := connection.scalar(sa.text("SHOW server_encoding"))) != "UTF8":
            raise StoreError(
                f"the store {hide_password(url)} has the encoding {encoding}, which cannot hold every text: create a "
                "database with ENCODING 'UTF8' TEMPLATE template0"
            )
        if not (versions := connection.scalars(sa.select(format_table.c.version)).all()):
            connection.execute(insert_into(connection, format_table).values(version=FORMAT).on_conflict_do_nothing())
            return
        present = {column["name"] for column in sa.inspect(connection).get_columns("samples")}
    if max(versions) > FORMAT:
        raise StoreError(
            f"the store {hide_password(url)} has format {max(versions)}, written by a newer malt; "
            f"this one reads {FORMAT}: upgrade malt"
        )
    if missing := [column.name for column in samples_table.c if column.name not in present]:
        raise StoreError(
            f"the store {hide_password(url)} has a table 'samples' without {', '.join(missing)}: it was not "
            "written by malt; move it away or set MALT_STORE_URL"
        )


def create_tables(connection: sa.Connection) -> None:
    """Create missing tables and indexes; several processes may do so at once."""
    if connection.dialect.name == "postgresql":  # its IF NOT EXISTS still has a race
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_STORE_LOCK)))
    for statement in _create_statements(connection.dialect.name, tuple(metadata.sorted_tables)):
        connection.exec_driver_sql(statement)


@cache
def _create_statements(dialect: str, tables: tuple[sa.Table, ...]) -> list[str]:
    """Return the statements that create tables; cached, as a process may open many stores."""
    statements: list[CreateTable | CreateIndex] = []
    for table in tables:
        statements.append(CreateTable(table, if_not_exists=True))
        statements.extend(CreateIndex(index, if_not_exists=True) for index in table.indexes)
    compiler = (postgresql if dialect == "postgresql" else sqlite).dialect()
    return [str(statement.compile(dialect=compiler)) for statement in statements]
