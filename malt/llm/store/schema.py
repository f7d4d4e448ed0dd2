"""The store's tables: created, or checked to be ours and not newer than this program."""

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateIndex, CreateTable

from malt.errors import StoreError
from malt.llm.store.database import database_errors, hide_password, make_engine

FORMAT = 1
"""Version of the tables below; a store with a higher one was written by a newer program."""

_OPEN_ATTEMPTS = 25
"""Tries to open a store that others are just making: six seconds in all."""
_STORE_LOCK = 0x6D616C74
"""Number of the lock under which tables are created in PostgreSQL."""

metadata = sa.MetaData()

samples_table = sa.Table(
    "samples",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("question_id", sa.Text, nullable=False, index=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("cost_usd", sa.Float),
    sa.Column("latency_s", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("run", sa.Text, nullable=False, server_default=""),
)

format_table = sa.Table("store_format", metadata, sa.Column("version", sa.Integer, primary_key=True))

_known_urls: set[str] = set()
"""URLs of the stores that this process has opened, or whose like its run has."""


def expect_store(url: str) -> None:
    """Have a store waited for that another process of the run has opened, and this one not yet."""
    _known_urls.add(url)


def is_known(url: str) -> bool:
    """Whether this process, or another of its run, has opened a store."""
    return url in _known_urls


def open_engine(url: str) -> sa.Engine:
    """Connect, check the format and create missing tables. Raises `StoreError`."""
    engine = make_engine(url)
    try:
        with database_errors(url):
            _when_free(lambda: _create_or_check(engine, url))
    except StoreError:
        engine.dispose()
        raise
    _known_urls.add(url)
    return engine


def _when_free(open_store: Callable[[], None]) -> None:
    """Try again while others make the same store: SQLite does not wait for its turn to switch to WAL."""
    for attempt in range(_OPEN_ATTEMPTS):
        try:
            open_store()
        except OperationalError as error:
            passes = any(sign in str(error.orig) for sign in ("locked", "deadlock", "duplicate column"))
            if not passes or attempt == _OPEN_ATTEMPTS - 1:
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
        dialect: Any = postgresql if is_postgres else sqlite
        if not (versions := connection.scalars(sa.select(format_table.c.version)).all()):
            connection.execute(dialect.insert(format_table).values(version=FORMAT).on_conflict_do_nothing())
            return
        present = {column["name"] for column in sa.inspect(connection).get_columns("samples")}
    if max(versions) > FORMAT:
        raise StoreError(
            f"the store {hide_password(url)} has format {max(versions)}, written by a newer malt; "
            f"this one reads {FORMAT}: upgrade malt"
        )
    if missing := [column.name for column in samples_table.c if column.name not in present | {"run"}]:
        raise StoreError(
            f"the store {hide_password(url)} has a table 'samples' without {', '.join(missing)}: it was not "
            "written by malt; move it away or set MALT_STORE_URL"
        )
    if "run" not in present:
        _add_run(engine)


def _add_run(engine: sa.Engine) -> None:
    """Add the one column that earlier releases did not write; they go on working with it there."""
    with engine.begin() as connection:
        if_missing = "IF NOT EXISTS " if engine.dialect.name == "postgresql" else ""
        connection.execute(sa.text(f"ALTER TABLE samples ADD COLUMN {if_missing}run TEXT DEFAULT '' NOT NULL"))


def create_tables(connection: sa.Connection) -> None:
    """Create what is missing; several processes may do so at once."""
    if connection.dialect.name == "postgresql":  # whose IF NOT EXISTS still races
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_STORE_LOCK)))
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))
