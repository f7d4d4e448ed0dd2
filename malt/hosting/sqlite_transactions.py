"""Serialised transactions for a Prefect server on SQLite: each takes the write lock when it begins.

Prefect's own transactions begin as readers. If another one writes meanwhile, a write fails at once with "database is
locked" and is lost: an automation's event, say, or a new flow run (503). And SQLite's lock is not fair: a waiter polls
for up to a minute while later ones get it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_IS_WRITING: ContextVar[bool] = ContextVar("is_writing", default=False)
"""Whether this task is in a transaction already: a nested one must not wait for it."""


class TakingTurns(AioSqliteConfiguration):
    """Database configuration whose transactions wait for each other instead of failing midway."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._turns = asyncio.Lock()

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - Prefect's signature
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Begin with the write lock at once: SQLAlchemy would begin only with the first statement."""
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
    """Make the Prefect server of this process use such transactions."""
    MODELS_DEPENDENCIES["database_config"] = TakingTurns(connection_url)
