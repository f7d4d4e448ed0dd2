"""Transactions of a Prefect server on SQLite: they take turns, each with the write lock from its beginning.

Prefect's own begin as readers. One that reads first and then writes fails at once where another has written meanwhile
("database is locked"), and what it was to write is lost: an automation's event, say, or a new flow run (503). And who
waits for SQLite's lock looks for it now and then, up to a minute, while others that came later get it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_IS_WRITING: ContextVar[bool] = ContextVar("is_writing", default=False)
"""Whether a transaction is going on already, which another one inside it must not wait for."""


class TakingTurns(AioSqliteConfiguration):
    """A database whose transactions wait for each other instead of failing in the middle."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._turns = asyncio.Lock()

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - Prefect's signature
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Begin at once: SQLAlchemy would wait for the first statement, and what is read inside would begin alike."""
        is_inside = _IS_WRITING.get()
        async with nullcontext() if is_inside else self._turns, session.begin() as transaction:
            mode = SQLITE_BEGIN_MODE.set("DEFERRED" if is_inside else "IMMEDIATE")
            try:
                await session.connection()
            finally:
                SQLITE_BEGIN_MODE.reset(mode)
            writing = _IS_WRITING.set(True)
            try:
                yield transaction
            finally:
                _IS_WRITING.reset(writing)


def take_turns(connection_url: str) -> None:
    """Let the server of this process use such transactions."""
    MODELS_DEPENDENCIES["database_config"] = TakingTurns(connection_url)
