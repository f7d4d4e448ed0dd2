"""The run lock: one run at a time grows a dataset, so that no two runs pay for the same answers; the others wait.

It is a file lock beside an SQLite store, or an advisory lock of a PostgreSQL session: both are released when the owner
ends, even if it crashes. The lock goes by the dataset's name; two datasets with equal requests are not kept apart.
"""

import asyncio
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from malt.config.settings import Settings
from malt.errors import StoreError, StoreLost
from malt.files import FileLock
from malt.llm.client.session import STOP_SECONDS, is_asking
from malt.llm.store.database import describe_error, open_engine

LOOK_EVERY_S = 0.25
"""Seconds between two attempts of a waiting run to acquire the lock."""
KEEP_EVERY_S = 1.0
"""Seconds between two checks that the lock is still held."""
GRACE_S = 3 * KEEP_EVERY_S
"""Seconds after a database comes back in which waiters let the previous owner acquire the lock again."""

_UNKNOWN = "another run of it"
_MOST_NAME_BYTES = 63
"""Bytes that PostgreSQL keeps of a session's application name."""
_KEEPALIVES = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
"""Settings with which the server detects within a minute that the owner's machine is gone."""

log = logging.getLogger(__name__)


ShowWait = Callable[[str | None], Awaitable[None]]
"""Callback that receives what the run waits for (the lock's owner or the store) at each change, None at the end."""


@asynccontextmanager
async def hold_run_lock(
    name: str, settings: Settings, who: str, show_wait: ShowWait | None = None
) -> AsyncIterator[None]:
    """Acquire the lock of dataset `name` in this store, waiting for its owner, and hold it. Not re-entrant.

    The owner is logged during the wait; `who` describes this run to other waiters. Raises `StoreError` where the store
    cannot be used. A run that loses its lock later goes on without it.
    """
    lock = _make_lock(name, settings, f"{who}, process {os.getpid()} on {socket.gethostname()}")
    try:
        await _acquire(lock, name, show_wait)
        keeping = asyncio.create_task(_keep_held(lock, name))
        try:
            yield
        except asyncio.CancelledError:
            await _wait_until_stored()
            raise
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
    finally:
        lock.release()


async def _acquire(lock: "FileLock | _AdvisoryLock", name: str, show_wait: ShowWait | None) -> None:
    shown = None
    while (holder := lock.take()) is not None:
        if shown is None or holder not in ("", shown):  # empty for a moment as the lock changes hands
            log.warning("dataset %s: waiting for %s", name, holder or _UNKNOWN)
            if show_wait is not None:
                await show_wait(holder or _UNKNOWN)
            shown = holder
        await asyncio.sleep(LOOK_EVERY_S)
    if shown is not None and show_wait is not None:
        await show_wait(None)


async def _wait_until_stored() -> None:
    """Wait until answers in flight are stored, at most as long as a session may take to stop."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and is_asking():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)


async def _keep_held(lock: "FileLock | _AdvisoryLock", name: str) -> None:
    """Check the lock regularly, and acquire it again where it was lost."""
    is_held = True
    while True:
        await asyncio.sleep(KEEP_EVERY_S)
        was_held, is_held = is_held, await asyncio.to_thread(lock.take) is None
        if was_held and not is_held:
            log.warning("dataset %s: its lock was lost with the store's connection; until it is back another run "
                        "may begin beside this one", name)  # fmt: skip


def _make_lock(name: str, settings: Settings, who: str) -> "FileLock | _AdvisoryLock":
    engine = open_engine(settings.store)
    if engine.dialect.name == "postgresql":
        return _AdvisoryLock(engine, name, who, settings.store_patience_s)
    engine.dispose()
    path = Path(f"{Path(engine.url.database or '').resolve()}-locks") / name
    try:
        return FileLock(path, who)
    except OSError as error:
        raise StoreError(f"the run lock {path} cannot be opened: {error.strerror}") from error


class _AdvisoryLock:
    """Advisory lock of a PostgreSQL session whose application name describes the owner; it ends with the session."""

    def __init__(self, engine: sa.Engine, name: str, who: str, patience_s: float) -> None:
        self._patience_s = patience_s
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        digest = hashlib.sha256(f"malt run lock {name}".encode()).digest()
        self._number = int.from_bytes(digest[:8]) >> 1  # 63 bits, as PostgreSQL's lock numbers are signed
        self._settings = {**_KEEPALIVES, "application_name": who.encode()[:_MOST_NAME_BYTES].decode(errors="ignore")}
        self._session: sa.Connection | None = None
        self._is_held = self._was_held = self._is_released = False
        self._away_since: float | None = None
        self._not_before = 0.0
        self._one_at_a_time = threading.Lock()

    def take(self) -> str | None:
        """Acquire the lock, or check that it is still held; return None if so, else what to wait for, "" where unknown.

        A lost session is replaced by a new one. After `release`, calls from other threads have no effect.
        """
        with self._one_at_a_time:
            if self._is_released:
                return ""
            try:
                holder = self._take(self._session or self._begin())
            except DBAPIError as error:
                return self._lost(error)
            self._away_since = None
            return holder

    def release(self) -> None:
        with self._one_at_a_time:
            self._is_released = True
            self._end()
            self._engine.dispose()

    def _take(self, session: sa.Connection) -> str | None:
        if self._is_held:
            session.execute(sa.select(1))
            return None
        if time.monotonic() >= self._not_before:
            self._is_held = bool(session.scalar(sa.select(sa.func.pg_try_advisory_lock(self._number))))
            self._was_held = self._was_held or self._is_held
        halves = {"high": self._number >> 32, "low": self._number & 0xFFFFFFFF}
        return None if self._is_held else session.scalar(_HOLDER, halves) or ""

    def _begin(self) -> sa.Connection:
        self._session = self._engine.connect()
        for name, value in self._settings.items():
            self._session.execute(sa.select(sa.func.set_config(name, value, False)))
        return self._session

    def _lost(self, error: DBAPIError) -> str:
        now = time.monotonic()
        self._end()
        self._away_since = self._away_since or now
        if not self._was_held:
            self._not_before = now + GRACE_S
            if now - self._away_since > self._patience_s:
                reason = describe_error(self._engine.url.render_as_string(), error)
                raise StoreLost(f"{reason}; waited {self._patience_s:g} s for it") from error
        return "the store, which cannot be used just now"

    def _end(self) -> None:
        self._is_held = False
        if self._session is not None:
            self._session.invalidate()  # otherwise the pool would keep the session, which would keep the lock
            self._session.close()
            self._session = None


_HOLDER = sa.text(
    "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND datname = current_database() AND database = datid AND classid = :high AND objid = :low AND objsubid = 1"
)
"""Query for the owner of an advisory lock, by the two halves of its number."""
