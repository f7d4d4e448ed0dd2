"""Process of a Prefect server; private_prefect.py starts it.

Run as `python -m malt.hosting.prefect_server SOCKET HOME HOST`. It ends when its standard input is closed: the parent
process holds the write end, so that the parent's end, of any kind, closes it.
"""

import asyncio
import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import MutableMapping
from contextlib import closing, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import Dialect

from malt.canonical_json import digest
from malt.files import hold_lock
from malt.hosting.access import App, OwnPagesOnly, Receive, Scope, Send, WithReports
from malt.processes import paused_gc, wait_for_parent

_STOP_LIMIT_S = 5.0
"""Seconds that the server may take to write its records once it has to stop."""


def main() -> None:
    """Serve Prefect's API on an open socket until standard input ends."""
    os.umask(0o077)  # only the user may read the records
    listener, home, host = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    url = os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    database = home / "prefect.db" if url.startswith("sqlite") else None
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        ws_per_message_deflate=False,  # events come from this machine
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, home, database)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    with paused_gc():
        if database is not None:
            from malt.hosting.sqlite_transactions import take_turns

            take_turns(url)
        _check_schemas_once()
        _bind_plain_timestamps()
        config.load()
    with_reports = WithReports(config.loaded_app, home.parent, os.environ["PREFECT_SERVER_API_AUTH_STRING"])
    config.loaded_app = _pause_sockets(OwnPagesOnly(with_reports, host, listener.getsockname()[1]))
    server.run(sockets=[listener])


def _check_schemas_once() -> None:
    """Check each form's schema only once: Prefect does for every run, and blocks other writers for 0.1 s each time."""
    from prefect.utilities.schema_tools.validation import _VALIDATOR  # late: the caller has paused garbage collection

    check, checked = _VALIDATOR.check_schema, set[str]()

    def check_once(schema: dict[str, Any], **options: object) -> None:
        key = digest(schema)
        if key not in checked:
            check(schema, **options)
            checked.add(key)

    _VALIDATOR.check_schema = check_once


def _bind_plain_timestamps() -> None:
    """Pass plain timestamps to databases: PostgreSQL's driver is slow to encode Prefect's, which are pendulum's."""
    from prefect.server.utilities.database import Timestamp

    bind = Timestamp.process_bind_param

    def bind_plain(self: Timestamp, value: datetime | None, dialect: Dialect) -> datetime | None:
        return bind(self, value and datetime.combine(value, value.timetz()), dialect)

    Timestamp.process_bind_param = bind_plain  # type: ignore[method-assign]


def _pause_sockets(app: App) -> App:
    """Yield to the server's other tasks after each websocket message: Prefect reads a run's events without a pause,
    and three runs that sent events steadily blocked all requests for half a minute.
    """

    async def paused(scope: Scope, receive: Receive, send: Send) -> None:
        async def take() -> MutableMapping[str, Any]:
            await asyncio.sleep(0)
            return await receive()

        await app(scope, take if scope["type"] == "websocket" else receive, send)

    return paused


def _end_with_parent(server: uvicorn.Server) -> None:
    """Wait for the parent's end, then end this process: cleanly if it serves and can stop in time, else at once."""
    wait_for_parent()
    if server.started:
        server.should_exit = True
        time.sleep(_STOP_LIMIT_S)
    os._exit(1)


class _Server(uvicorn.Server):
    """A server that creates or upgrades its database under a lock."""

    def __init__(self, config: uvicorn.Config, home: Path, database: Path | None) -> None:
        super().__init__(config)
        self._home, self._database = home, database

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start under the lock; a new database is copied from the cache, or to it before the first request."""
        with hold_lock(self._home / "starting.lock"), paused_gc():
            is_new = self._database is not None and not self._database.exists()
            is_made = not is_new or copy_database(cached_database(), self._database)
            for path in self._home.glob("prefect.db*"):
                path.chmod(0o600)
            await super().startup(sockets)
            if not is_made:
                copy_database(self._database, cached_database())


def cached_database() -> Path | None:
    """Return the cache file of an empty database, or None without a home folder. It saves 3 s of CPU for migrations."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - Path's raises there
    return caches / "malt" / f"prefect-{version('prefect')}.db" if caches.is_absolute() else None


def copy_database(source: Path | None, target: Path | None) -> bool:
    """Copy a database, whole or not at all; return whether it was copied. If not, Prefect creates its own."""
    if source is None or target is None or not source.exists():
        return False
    with suppress(OSError, sqlite3.Error):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = Path(folder, target.name)
            with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(copy)) as writing:
                reading.backup(writing)
            _remove_logs(target)
            copy.rename(target)
        return True
    return False


def _remove_logs(database: Path) -> None:
    """Remove logs left by a database that was deleted by hand: SQLite would apply them to the copy."""
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
