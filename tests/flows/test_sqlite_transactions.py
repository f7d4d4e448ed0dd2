"""Concurrent transactions of a Prefect server on SQLite that read before they write."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.exc import OperationalError

from malt.hosting.sqlite_transactions import TakingTurns

WRITERS = 8


async def count_together(config: AioSqliteConfiguration) -> int:
    """Let concurrent writers each read a number and write it plus one; return the final number."""
    engine = await config.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE counted (number int)"))
        await connection.execute(sa.text("INSERT INTO counted VALUES (0)"))

    async def add_one() -> None:
        async with await config.session(engine) as session, config.begin_transaction(session):
            read = await session.scalar(sa.text("SELECT number FROM counted"))
            await asyncio.sleep(0.01)  # other writers read meanwhile
            await session.execute(sa.text("UPDATE counted SET number = :next"), {"next": int(read or 0) + 1})

    try:
        ended = await asyncio.gather(*(add_one() for _ in range(WRITERS)), return_exceptions=True)
        for error in filter(None, ended):  # raised after all have ended, so that no connection stays open
            raise error
        async with await config.session(engine) as session:
            return int(await session.scalar(sa.text("SELECT number FROM counted")) or 0)
    finally:
        await engine.dispose()


def test_concurrent_transactions_wait_for_their_turn(tmp_path: Path) -> None:
    assert asyncio.run(count_together(TakingTurns(f"sqlite+aiosqlite:///{tmp_path / 'ours.db'}"))) == WRITERS


def test_prefect_s_own_transactions_fail_with_a_locked_database(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(count_together(AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'stock.db'}")))


def test_a_nested_transaction_does_not_wait_for_the_outer_one(tmp_path: Path) -> None:
    async def read_inside() -> int:
        config = TakingTurns(f"sqlite+aiosqlite:///{tmp_path / 'inside.db'}")
        engine = await config.engine()
        async with (
            await config.session(engine) as outer,
            config.begin_transaction(outer),
            await config.session(engine) as inner,
            config.begin_transaction(inner),
        ):
            found = int(await inner.scalar(sa.text("SELECT 7")) or 0)
        await engine.dispose()
        return found

    assert asyncio.run(asyncio.wait_for(read_inside(), 120)) == 7
