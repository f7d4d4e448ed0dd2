"""The store: every sample ever paid for, by key, in one SQL table; the single source of truth about model output.

A row holds the provider's raw response, written before anything parses it, and parsed at each use. An answer is never
overwritten. A failed request leaves a row with its error, which a later answer replaces. To request a sample again, its
answer is set aside: its row moves to a key that no request has. SQLite in WAL mode by default; PostgreSQL when several
machines write. While a store that was open is away, or its disk is full, the run waits for it.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError

from malt.errors import StoreError, StoreLost
from malt.llm.store.database import (
    StoredSample,
    database_errors,
    describe_error,
    format_table,
    hide_password,
    insert_into,
    is_transient,
    known_urls,
    open_engine,
    samples_table,
)

T = TypeVar("T")

_RETRY_EVERY_S = 0.5
"""Seconds between two attempts to use a store that is away."""

ASIDE = "~"
"""Separator in the key of an answer that was set aside: between its original key and its time."""


class OldRow(NamedTuple):
    """Identity of a row, from which garbage collection decides, and the length of its text."""

    key: str
    question_id: str
    role: str
    size: int


COLUMNS = samples_table.c.keys()
_PER_QUERY = 500
"""Values bound in one query, well below SQLite's limit."""
_WRITTEN_AT = sa.select(samples_table.c.key, samples_table.c.created_at).where(
    samples_table.c.key.in_(sa.bindparam("keys", expanding=True))
)
_SET_ASIDE = (
    sa.update(samples_table)
    .where(samples_table.c.key == sa.bindparam("answered"), samples_table.c.response.is_not(None))
    .values(key=sa.bindparam("aside"))
)
_BY_KEY = sa.select(samples_table).where(samples_table.c.key == sa.bindparam("key"))


class UnwritableRow(StoreError):  # noqa: N818
    """A row has a text that the database cannot store."""


class Store:
    """The table behind a SQLAlchemy URL. Safe to use from several threads and processes at once."""

    def __init__(self, url: str, patience_s: float = 0.0) -> None:
        """Open the store, creating it if needed; one that was opened before is waited for up to `patience_s` seconds.

        Raises `StoreError` where it cannot be opened, is not a store, or was written by a newer malt.
        """
        self.url = url
        self.lost: StoreLost | None = None
        """Error that ended the use of the store: it stayed away too long, or its file is gone."""
        self.patience_s = patience_s
        self._away_since: float | None = None
        self._cannot_write = False
        self._engine, self._rescuing = self._open(), threading.Lock()
        self._inode, self._insert = self._find_inode(), self._upsert()
        self._kept_open = self._keep_open()

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to use the store failed."""
        return self._away_since is not None

    def rows(self, question_ids: Iterable[str]) -> dict[str, StoredSample]:
        ids = list(dict.fromkeys(question_ids))

        def read(connection: sa.Connection) -> dict[str, StoredSample]:
            found: dict[str, StoredSample] = {}
            for chunk in split_chunks(ids):
                query = sa.select(samples_table).where(samples_table.c.question_id.in_(chunk))
                found.update((row[0], StoredSample(*row)) for row in connection.execute(query).all())
            return found

        return self.transact(read, writes=False)

    def count(self, question_ids: Iterable[str]) -> Counter[str]:
        asked, counted = samples_table.c.question_id, Counter[str]()
        for chunk in split_chunks(list(dict.fromkeys(question_ids))):
            query = sa.select(asked, sa.func.count()).where(asked.in_(chunk)).group_by(asked)
            counted.update({row[0]: row[1] for row in self.fetch(query)})
        return counted

    def write(self, rows: Sequence[StoredSample]) -> dict[str, StoredSample]:
        """Write rows in one transaction, all or none, and return what the store then holds for their keys.

        A key that already has another run's answer keeps that one, which all runs then use.
        """
        values = [{name: getattr(row, name) for name in COLUMNS} for row in rows]
        written = {row.key: row.created_at for row in rows}

        def write(connection: sa.Connection) -> dict[str, StoredSample]:
            held = {row.key: row for row in rows}
            connection.execute(self._insert, values)
            for keys in split_chunks(list(held)):
                for key, created_at in connection.execute(_WRITTEN_AT, {"keys": keys}):
                    if created_at != written[key]:
                        held[key] = StoredSample(*connection.execute(_BY_KEY, {"key": key}).one())
            return held

        return self.transact(write)

    def set_aside(self, keys: Iterable[str], before: float) -> int:
        """Set aside the answers to keys that are older than a time, all or none; return their number."""
        wanted = list(keys)

        def move(connection: sa.Connection) -> int:
            moved = 0
            for chunk in split_chunks(wanted):
                old = [row for row in connection.execute(_WRITTEN_AT, {"keys": chunk}) if row.created_at < before]
                names = [{"answered": row.key, "aside": f"{row.key}{ASIDE}{row.created_at!r}"} for row in old]
                moved += connection.execute(_SET_ASIDE, names).rowcount if names else 0
            return moved

        return self.transact(move)

    def old_rows(self, before: float) -> Iterator[list[OldRow]]:
        """Yield all rows written before a time, a few hundred questions at once, each in a short transaction."""
        columns = samples_table.c
        size = sa.func.length(sa.func.coalesce(columns.response, columns.error))
        after = ""
        while question_ids := self._next_questions(after):
            after = question_ids[-1]
            query = sa.select(columns.key, columns.question_id, columns.role, size).where(
                columns.question_id.between(question_ids[0], after), columns.created_at < before
            )
            yield [OldRow(*row) for row in self.fetch(query)]

    def _next_questions(self, after: str) -> Sequence[str]:
        question_id = samples_table.c.question_id
        query = sa.select(question_id).where(question_id > after).distinct().order_by(question_id).limit(_PER_QUERY)
        return [row[0] for row in self.fetch(query)]

    def delete(self, keys: Sequence[str], before: float) -> int:
        """Delete the rows with these keys that are older than a time; return their number."""
        key, is_older = samples_table.c.key, samples_table.c.created_at < before
        deletions = (sa.delete(samples_table).where(key.in_(chunk), is_older) for chunk in split_chunks(keys))
        return sum(map(self.execute, deletions))

    def compact(self) -> None:
        """Return the space of deleted rows to the disk; SQLite blocks all other writers meanwhile."""
        statement = "VACUUM samples" if self._engine.dialect.name == "postgresql" else "VACUUM"
        with database_errors(self.url), self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)

    def check_writable(self) -> None:
        """Raise `StoreError` where the store is not writable, before anything is paid for."""
        write = sa.update(format_table).values(version=format_table.c.version)
        try:
            with database_errors(self.url), self._engine.begin() as connection:
                connection.execute(write)
        except StoreError:
            self.close()
            raise

    def check_in_place(self) -> None:
        """Detect that an SQLite file was removed or replaced; then copy its contents to a new file and set `lost`."""
        with self._rescuing:
            if self._inode is not None and self._find_inode() != self._inode:
                self._inode = None
                rescued = self._rescue()
                self.lost = StoreLost(
                    f"the store {hide_password(self.url)} is gone: its file was removed or replaced. Its contents, and "
                    f"later answers, are in {rescued}; move that file back, and run again"
                )

    def _find_inode(self) -> int | None:
        path = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        with suppress(OSError):
            return os.stat(path).st_ino if path else None  # noqa: PTH116 - before each request
        return None

    def _keep_open(self) -> sqlite3.Connection | None:
        """Open an SQLite file for `_rescue`: once it is removed, no new connection to it can be opened."""
        if self._inode is None:
            return None
        connection = sqlite3.connect(str(self._engine.url.database), timeout=30, check_same_thread=False)
        with suppress(sqlite3.Error):  # a later write raises it
            connection.execute("SELECT * FROM sqlite_master").fetchall()  # SQLite opens the file at the first read
        return connection

    def _rescue(self) -> str:
        """Copy an unlinked SQLite file through the connection kept open, and switch to the copy; return its path."""
        target = f"{self._engine.url.database}.rescued-{os.getpid()}"
        with suppress(sqlite3.Error), closing(sqlite3.connect(target)) as copy:
            if self._kept_open is not None:
                self._kept_open.execute("BEGIN IMMEDIATE").execute("COMMIT")  # wait for a write in progress
                self._kept_open.backup(copy)
        self._engine.dispose()
        self._engine = open_engine(f"sqlite:///{target}")
        return target

    def transact(self, work: Callable[[sa.Connection], T], *, writes: bool = True) -> T:
        """Do work in one transaction, all or nothing; retry while the store is away.

        After a failed write the store counts as away until a write succeeds, even if it can be read: its disk may be
        full. Raises `StoreLost` where it stays away too long, and `StoreError` for an error that does not pass.
        """
        while True:
            self.check_in_place()
            engine = self._engine
            try:
                with engine.begin() as connection:
                    done = work(connection)
            except (DataError, UnicodeEncodeError) as error:
                raise UnwritableRow(f"the store {hide_password(self.url)} cannot hold a text: {error}") from error
            except DBAPIError as error:
                self.check_in_place()
                if engine is self._engine:
                    self._wait_out(error, writes=writes)
            else:
                if writes:
                    self.check_in_place()
                if writes and engine is not self._engine:  # the rescued copy may lack this write
                    continue
                if writes or not self._cannot_write:
                    self._away_since, self._cannot_write = None, False
                return done

    def fetch(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return self.transact(lambda connection: connection.execute(query).all(), writes=False)

    def execute(self, *statements: sa.UpdateBase) -> int:
        """Execute statements in one transaction; return the number of rows that they changed."""
        return self.transact(lambda connection: sum(connection.execute(each).rowcount for each in statements))

    def _open(self) -> sa.Engine:
        """Connect; retry where the store has been opened before."""
        while True:
            try:
                return open_engine(self.url)
            except StoreError as error:
                if self.url not in known_urls or not isinstance(error.__cause__, DBAPIError):
                    raise
                self._wait_out(error.__cause__)

    def _wait_out(self, error: DBAPIError, *, writes: bool = False) -> None:
        """Wait before a retry of a transient error; raise `StoreError` or `StoreLost` where no retry is due."""
        reason = describe_error(self.url, error)
        if not (self.patience_s and is_transient(error)):
            raise StoreError(reason) from error
        now = time.monotonic()
        self._away_since = self._away_since or now
        self._cannot_write = self._cannot_write or writes
        if now - self._away_since >= self.patience_s:
            self.lost = StoreLost(
                f"{reason}; waited {self.patience_s:g} s for it. What was stored before is safe: fix it, and run again"
            )
            raise self.lost from error
        time.sleep(_RETRY_EVERY_S)

    def close(self) -> None:
        if self._kept_open is not None:
            self._kept_open.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _upsert(self) -> sa.Insert:
        insert = insert_into(self._engine, samples_table)
        statement: sa.Insert = insert.on_conflict_do_update(
            index_elements=["key"],
            set_={name: insert.excluded[name] for name in COLUMNS if name != "key"},
            where=samples_table.c.response.is_(None),
        )
        return statement


class PastStore(Store):
    """A store as it was at an earlier moment, for reading."""

    def __init__(self, url: str, moment: datetime) -> None:
        super().__init__(url)
        self.moment = moment.timestamp()

    def rows(self, question_ids: Iterable[str]) -> dict[str, StoredSample]:
        answers: dict[str, list[StoredSample]] = {}
        for key, row in super().rows(question_ids).items():
            answers.setdefault(key.partition(ASIDE)[0], []).append(row)
        return {key: replace(self._held(rows), key=key) for key, rows in answers.items()}

    def _held(self, rows: list[StoredSample]) -> StoredSample:
        in_order = sorted(rows, key=lambda row: row.created_at)
        return next((row for row in reversed(in_order) if row.created_at <= self.moment), in_order[0])


def split_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split values into chunks that fit in one query."""
    for start in range(0, len(values), _PER_QUERY):
        yield values[start : start + _PER_QUERY]


_Batch = Sequence[tuple[Sequence[StoredSample], asyncio.Future[list[StoredSample]]]]


class BatchedWriter:
    """Writer that groups the rows that arrive during a commit into the next one. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[tuple[Sequence[StoredSample], asyncio.Future[list[StoredSample]]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def put(self, rows: Sequence[StoredSample]) -> list[StoredSample]:
        """Commit rows, then return what the store holds for their keys. Raises `StoreError` where the commit fails."""
        committed: asyncio.Future[list[StoredSample]] = asyncio.get_running_loop().create_future()
        self._pending.append((rows, committed))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.shield(committed)

    async def drain(self) -> None:
        if self._flushing is not None:
            await self._flushing

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            await self._commit(batch)

    async def _commit(self, batch: _Batch) -> None:
        """Write all groups in one commit; if that fails, one at a time, so that only the faulty group fails."""
        rows = [row for group, _ in batch for row in group]
        try:
            held = await self._write(rows)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreLost):
                await self._commit_each(batch)
                return
            for _, committed in batch:
                committed.set_exception(error)
        else:
            for group, committed in batch:
                committed.set_result([held[row.key] for row in group])

    async def _commit_each(self, batch: _Batch) -> None:
        for each in batch:
            await self._commit([each])

    async def _write(self, rows: Sequence[StoredSample]) -> dict[str, StoredSample]:
        """Write in a thread, or in this one where the interpreter is shutting down and cannot start any."""
        try:
            writing = asyncio.get_running_loop().run_in_executor(None, self._store.write, rows)
        except RuntimeError:
            return self._store.write(rows)
        return await writing
