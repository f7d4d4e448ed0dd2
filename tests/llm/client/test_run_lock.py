"""The run lock: one run at a time grows a dataset; a waiter is told who holds the lock, a dead process holds none."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from malt.config.settings import Settings
from malt.errors import StoreError, StoreLost
from malt.llm.client.run_lock import GRACE_S, KEEP_EVERY_S, LOOK_EVERY_S, _make_lock, hold_run_lock
from tests.postgres import Postgres

SOON_S = 2 * LOOK_EVERY_S
LIMIT_S = 120.0
"""Limit in seconds for a busy machine."""
HOLDER = """
import asyncio
from malt.llm.client.run_lock import hold_run_lock
from malt.config.settings import Settings

async def hold():
    async with hold_run_lock("sums", Settings(), "a process of its own"):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with Postgres() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a store in SQLite or PostgreSQL, for child processes too."""
    if request.param == "postgresql":
        monkeypatch.setenv("MALT_STORE_URL", request.getfixturevalue("server").url("postgres"))
    return Settings()


async def hold_briefly(settings: Settings, name: str = "sums") -> None:
    async with hold_run_lock(name, settings, "the second"):
        pass


async def waits(run: "asyncio.Task[None]") -> bool:
    await asyncio.sleep(SOON_S)
    return not run.done()


async def test_a_second_run_waits_for_the_first_and_says_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with hold_run_lock("sums", settings, "the first"):
        second = asyncio.create_task(hold_briefly(settings))
        assert await waits(second)
    await asyncio.wait_for(second, LIMIT_S)
    [said] = caplog.messages
    assert said.startswith(f"dataset sums: waiting for the first, process {os.getpid()} on ")


async def test_a_run_that_waits_may_give_up(settings: Settings) -> None:
    async with hold_run_lock("sums", settings, "the first"):
        second = asyncio.create_task(hold_briefly(settings))
        assert await waits(second)
        second.cancel()
        await asyncio.wait([second], timeout=LIMIT_S)
        assert second.cancelled()
    await asyncio.wait_for(hold_briefly(settings), LIMIT_S)


async def test_a_lock_that_was_released_is_not_taken_again(settings: Settings) -> None:
    lock = _make_lock("sums", settings, "the first")
    assert lock.take() is None
    lock.release()
    await asyncio.to_thread(lock.take)  # as a waiter's pending attempt would
    await asyncio.wait_for(hold_briefly(settings), LIMIT_S)


async def test_other_datasets_and_other_stores_need_not_wait(settings: Settings, tmp_path: Path) -> None:
    async with hold_run_lock("sums", settings, "the first"):
        await asyncio.wait_for(hold_briefly(settings, "products"), LIMIT_S)
        await asyncio.wait_for(hold_briefly(Settings(store_url=f"sqlite:///{tmp_path}/other.db")), LIMIT_S)


async def test_a_killed_process_holds_no_lock(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    second = asyncio.create_task(hold_briefly(settings))
    assert await waits(second)
    holder.kill()
    await asyncio.wait_for(second, LIMIT_S)
    await holder.communicate()
    assert f"waiting for a process of its own, process {holder.pid} on " in caplog.messages[0]


async def test_two_paths_to_one_store_share_its_locks(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("store.db")
    async with hold_run_lock("sums", Settings(store_url=f"sqlite:///{tmp_path}/store.db"), "the first"):
        second = asyncio.create_task(hold_briefly(Settings(store_url=f"sqlite:///{tmp_path}/link.db")))
        assert await waits(second)
        second.cancel()


async def test_a_lock_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store.db-locks").touch()
    with pytest.raises(StoreError, match=r"store\.db-locks/sums.*File exists"):
        await hold_briefly(Settings(store_url=f"sqlite:///{tmp_path}/store.db"))


async def test_a_killed_database_leaves_the_lock_with_the_run_that_held_it(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(store_url=server.url("postgres"))
    async with hold_run_lock("sums", settings, "the first"):
        second = asyncio.create_task(hold_briefly(settings))
        assert await waits(second)
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.sleep(KEEP_EVERY_S + SOON_S)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(GRACE_S + SOON_S)
        assert not second.done()
    await asyncio.wait_for(second, LIMIT_S)
    first, *others = caplog.messages
    assert first.startswith("dataset sums: waiting for the first")
    assert "dataset sums: waiting for the store, which cannot be used just now" in others
    assert len([said for said in others if "its lock was lost" in said]) == 1


async def test_a_database_that_stays_away_ends_the_wait_and_not_the_run(server: Postgres) -> None:
    settings = Settings(store_url=server.url("postgres"), store_patience_s=SOON_S)
    async with hold_run_lock("sums", settings, "the first"):
        second = asyncio.create_task(hold_briefly(settings))
        assert await waits(second)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(StoreLost, match="cannot be used"):
            await asyncio.wait_for(second, LIMIT_S)
    await asyncio.to_thread(server.start)
