"""The store keeps every answer once, and fails with a clear error if it cannot."""

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier, Event

import pytest
import sqlalchemy as sa

from malt.errors import StoreError, StoreLost
from malt.llm.store.database import FORMAT, StoredSample, expect_store, hide_password, parse_url, samples_table
from malt.llm.store.samples import ASIDE, BatchedWriter, Store, UnwritableRow
from tests.postgres import Postgres
from tests.postgres import postgres as postgres

LIMIT_S = 300.0
"""Limit in seconds for a very busy machine."""


def answered(key: str, question_id: str = "q1", response: str | None = "{}", error: str | None = None) -> StoredSample:
    return StoredSample(key, question_id, "generator", "m", "", 0, response, error, None, 0.5)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def test_written_rows_are_read_back_by_question(url: str) -> None:
    with Store(url) as store:
        rows = [answered("a"), answered("b", "q2"), answered("c", "q3")]
        store.write(rows)
        assert store.rows(["q1", "q2"]) == {"a": rows[0], "b": rows[1]}


def test_many_questions_are_read_at_once(url: str) -> None:
    with Store(url) as store:
        store.write([answered(f"k{i}", f"q{i}") for i in range(1200)])
        assert len(store.rows(f"q{i}" for i in range(1200))) == 1200


def test_rows_are_counted_by_question_whatever_they_hold(url: str) -> None:
    with Store(url) as store:
        store.write([answered("a"), answered("b", response=None, error="down"), answered("c", "q2")])
        assert store.count(["q1", "q2", "q3", "q1"]) == {"q1": 2, "q2": 1}


def test_an_answer_is_never_overwritten(url: str) -> None:
    with Store(url) as store:
        store.write([answered("a", response='"first"')])
        store.write([answered("a", response='"second"')])
        store.write([answered("a", response=None, error="down")])
        assert store.rows(["q1"])["a"].response == '"first"'


def test_a_second_writer_gets_the_stored_answer(url: str) -> None:
    with Store(url) as store:
        store.write([answered("a", response='"first"')])
        held = store.write([answered("a", response='"second"'), answered("b")])
        assert held["a"].response == '"first"'
        assert held == store.rows(["q1"])


def test_a_failure_is_replaced_by_a_later_answer(url: str) -> None:
    with Store(url) as store:
        store.write([answered("a", response=None, error="down")])
        assert store.rows(["q1"])["a"].error == "down"
        store.write([answered("a")])
        assert store.rows(["q1"])["a"].error is None


def test_an_answer_that_is_set_aside_is_kept_and_makes_room_for_another(url: str) -> None:
    with Store(url) as store:
        old = replace(answered("a", response='"first"'), created_at=100.0)
        store.write([old, answered("b", response=None, error="down")])
        assert store.set_aside(["a", "b", "never asked"], before=200.0) == 1
        store.write([replace(answered("a", response='"second"'), created_at=300.0)])
        rows = store.rows(["q1"])
        assert rows["a"].response == '"second"'
        assert rows[f"a{ASIDE}100.0"] == replace(old, key=f"a{ASIDE}100.0")
        assert rows["b"].error == "down"


def test_setting_aside_again_for_the_same_time_spares_what_came_since(url: str) -> None:
    with Store(url) as store:
        store.write([replace(answered("a"), created_at=100.0)])
        assert store.set_aside(["a"], before=200.0) == 1
        store.write([replace(answered("a"), created_at=300.0)])
        assert store.set_aside(["a"], before=200.0) == 0
        assert store.set_aside(["a"], before=400.0) == 1
        assert len(store.rows(["q1"])) == 2


def test_a_store_by_a_newer_program_is_refused_with_what_to_do(url: str, tmp_path: Path) -> None:
    Store(url).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE store_format SET version = ?", [FORMAT + 1])
    with pytest.raises(StoreError, match=rf"format {FORMAT + 1}.*newer malt.*upgrade"):
        Store(url)


def test_a_file_that_is_no_database_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"these are not the rows you are looking for" * 100)
    with pytest.raises(StoreError, match=r"store\.db.*not a database"):
        Store(url)


def test_another_programs_table_is_refused(url: str, tmp_path: Path) -> None:
    Store(url).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("ALTER TABLE samples RENAME COLUMN response TO reply")
    with pytest.raises(StoreError, match=r"without response.*not written by malt"):
        Store(url)


@pytest.mark.parametrize("url", ["nonsense", "oracle9i://x/y"])
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="not a usable database URL"):
        Store(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@127.0.0.1/malt", "postgresql://***@127.0.0.1/malt"),
        ("postgresql://me:s3c/ret@h:p/db", "postgresql://***@h:p/db"),
        ("postgresql://me:1/s3cret@h/db", "postgresql://***@h/db"),
        ("postgresql://me:s3@cret@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?sslpassword=s3cret&PASSWORD=s3cret", "postgresql://h/db?sslpassword=***&PASSWORD=***"),
        ("sqlite:////home/me@work/store.db", "sqlite:////home/me@work/store.db"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


async def test_writers_on_one_loop_share_commits_and_lose_nothing(url: str) -> None:
    with Store(url) as store:
        writer = BatchedWriter(store)
        await asyncio.gather(*(writer.put([answered(f"k{i}")]) for i in range(200)))
        assert len(store.rows(["q1"])) == 200


async def test_a_row_is_committed_when_put_returns(url: str) -> None:
    with Store(url) as store, Store(url) as other:
        await BatchedWriter(store).put([answered("a")])
        assert "a" in other.rows(["q1"])


async def test_a_row_is_written_by_a_process_that_can_start_no_thread_any_more(url: str) -> None:
    with Store(url) as store:
        await asyncio.get_running_loop().shutdown_default_executor()
        await BatchedWriter(store).put([answered("a")])
        assert "a" in store.rows(["q1"])


async def test_a_failed_write_raises_for_every_waiter(url: str, tmp_path: Path) -> None:
    with Store(url) as store:
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("DROP TABLE samples")
        writer = BatchedWriter(store)
        results = await asyncio.gather(writer.put([answered("a")]), writer.put([answered("b")]), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)


WRITE_MANY = """
import sys
from malt.llm.store.samples import Store, StoredSample
with Store(sys.argv[1]) as store:
    for i in range(100):
        store.write([StoredSample(f"{sys.argv[2]}-{i}", "q1", "generator", "m", "", 0, "{}", None, None, 0.5)])
"""


def test_two_processes_write_one_store_at_once(url: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_MANY, url, name]) for name in ("left", "right")]
    assert [writer.wait(LIMIT_S) for writer in writers] == [0, 0]
    with Store(url) as store:
        assert len(store.rows(["q1"])) == 200


def test_a_new_store_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    def open_one(_: int, url: str) -> None:
        together.wait()
        Store(url).close()

    for attempt in range(5):
        together = Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(open_one, range(6), [f"sqlite:///{tmp_path / f'{attempt}.db'}"] * 6))
    assert len(list(tmp_path.glob("*.db"))) == 5


def test_rows_keep_what_cannot_be_shown_in_a_terminal(url: str) -> None:
    odd = replace(answered("a"), response='"\\u0000 \\ud800 \u2028 😀"', error=None)
    with Store(url) as store:
        store.write([odd])
        assert store.rows(["q1"])["a"] == odd


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "a store in memory would lose what was paid for"),
        ("sqlite:///:memory:", "a store in memory would lose what was paid for"),
        ("mysql://me:s3cret@h/db", "a store is sqlite or postgresql"),
        ("sqlite+aiosqlite:///x.db", "a store is sqlite or postgresql"),
        ("postgresql://me:s3cret@[::1", "not a usable database URL"),
        ("postgresql://h:p/db?password=s3cret", "not a usable database URL: its host or port cannot be read"),
        ("mysql://h/db?a=b&password=s3cret", "a store is sqlite or postgresql"),
    ],
)
def test_a_database_that_cannot_be_a_store_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Store(url)
    assert "s3cret" not in str(caught.value)


LARGE = "x" * 400_000


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of this process's files to that of an empty store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_on_a_full_disk_is_waited_for_until_there_is_room(url: str) -> None:
    row = answered("a", response=LARGE)
    with Store(url, patience_s=LIMIT_S) as store, ThreadPoolExecutor(1) as pool:
        with full_disk():
            writing = pool.submit(store.write, [row])
            wait_until(lambda: store.is_away)
            assert not writing.done()
        assert writing.result(LIMIT_S) == {"a": row}
        assert not store.is_away
        assert store.rows(["q1"]) == {"a": row}


def test_a_full_disk_that_can_be_read_is_full_all_the_same(url: str) -> None:
    with Store(url, patience_s=1.0) as store, ThreadPoolExecutor(1) as pool, full_disk():
        writing = pool.submit(store.write, [answered("a", response=LARGE)])
        wait_until(lambda: store.is_away)
        assert store.rows(["q1"]) == {}
        assert store.is_away
        while not writing.done():
            store.rows(["q1"])
        assert isinstance(writing.exception(), StoreLost)


def test_a_store_that_stays_away_is_given_up_and_keeps_what_it_had(url: str) -> None:
    with Store(url, patience_s=0.6) as store:
        store.write([answered("a")])
        with full_disk(), pytest.raises(StoreLost, match=r"store\.db.*waited 0\.6 s.*run again") as lost:
            store.write([answered("b", response=LARGE)])
        assert lost.value.exit_code == 3
        assert list(store.rows(["q1"])) == ["a"]


def test_a_store_without_patience_reports_an_outage_at_once(url: str) -> None:
    with Store(url) as store, full_disk(), pytest.raises(StoreError, match="cannot be used"):
        store.write([answered("a", response=LARGE)])


def test_a_process_that_joins_a_run_waits_for_the_store_that_the_run_had() -> None:
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with Postgres() as server, ThreadPoolExecutor(1) as pool:
        url = server.url("postgres")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(StoreError, match="cannot be used"):
            Store(url, patience_s=LIMIT_S)
        expect_store(url)
        opening = pool.submit(Store, url, LIMIT_S)
        server.start()
        opening.result(LIMIT_S).close()


def test_postgresql_may_be_killed_and_started_again_under_a_store() -> None:
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with (
        Postgres() as server,
        Store(server.url("postgres"), patience_s=LIMIT_S) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        store.write([answered("a")])
        os.kill(server.pid, signal.SIGKILL)
        writing = pool.submit(store.write, [answered("b")])
        opening = pool.submit(Store, server.url("postgres"), LIMIT_S)
        server.start()
        assert list(writing.result(LIMIT_S)) == ["b"]
        opening.result(LIMIT_S).close()
        assert sorted(store.rows(["q1"])) == ["a", "b"]


def test_a_text_that_cannot_be_held_fails_alone(url: str) -> None:
    with Store(url) as store:
        writer = BatchedWriter(store)

        async def put() -> list[object]:
            rows = [answered("a"), answered("b", response=None, error="odd \ud800 text"), answered("c")]
            return await asyncio.gather(*(writer.put([row]) for row in rows), return_exceptions=True)

        written = asyncio.run(put())
        assert [isinstance(result, UnwritableRow) for result in written] == [False, True, False]
        assert set(store.rows(["q1"])) == {"a", "c"}


def test_postgresql_refuses_nul_for_its_row_alone(postgres: str) -> None:
    with Store(postgres) as store, pytest.raises(UnwritableRow, match="cannot hold a text"):
        store.write([answered("nul", response=None, error="a \x00 byte")])


def test_the_rows_of_a_removed_file_are_rescued_with_later_ones(url: str, tmp_path: Path) -> None:
    with Store(url) as store:
        store.write([answered("a")])
        for file in tmp_path.glob("store.db*"):
            file.unlink()
        store.write([answered("b")])
        assert store.lost is not None
        assert store.lost.exit_code == 3
        [rescued] = tmp_path.glob("store.db.rescued-*[0-9]")
        assert str(rescued) in str(store.lost)
    with Store(f"sqlite:///{rescued}") as copy:
        assert set(copy.rows(["q1"])) == {"a", "b"}


def test_a_file_that_was_replaced_is_noticed(url: str, tmp_path: Path) -> None:
    with Store(url) as store:
        Path(shutil.copy(tmp_path / "store.db", tmp_path / "other.db")).replace(tmp_path / "store.db")
        store.check_in_place()
        assert store.lost is not None


def test_a_database_that_is_read_only_for_now_is_waited_for_and_found_before_anything_is_asked() -> None:
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with Postgres() as server, Store(server.url("postgres"), LIMIT_S) as store, ThreadPoolExecutor(1) as pool:
        set_read_only(server, read_only=True)
        assert store.rows(["q1"]) == {}  # reconnects
        with pytest.raises(StoreError, match="cannot be used: cannot execute UPDATE in a read-only transaction"):
            store.check_writable()
        writing = pool.submit(store.write, [answered("a")])
        wait_until(lambda: store.is_away)
        set_read_only(server, read_only=False)
        assert list(writing.result(LIMIT_S)) == ["a"]


def set_read_only(server: Postgres, *, read_only: bool) -> None:
    engine = sa.create_engine(parse_url(server.url("postgres")), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        connection.exec_driver_sql(f"ALTER DATABASE postgres SET default_transaction_read_only = {read_only}")
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) {others}"
        )  # open connections would keep their mode
    engine.dispose()


def test_a_database_that_cannot_hold_every_text_is_refused(postgres: str) -> None:
    engine = sa.create_engine(parse_url(postgres), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    engine.dispose()
    with pytest.raises(StoreError, match=r"has the encoding SQL_ASCII.*ENCODING 'UTF8'"):
        Store(postgres.rpartition("/")[0] + "/ascii")


def test_a_file_that_is_removed_while_it_is_read_is_rescued_whole(url: str, tmp_path: Path) -> None:
    reads, go_on = Event(), Event()

    def read(_: sa.Connection) -> None:
        reads.set()
        go_on.wait(60)

    with Store(url) as store, ThreadPoolExecutor() as threads:
        store.write([answered("a"), answered("b")])
        reading = threads.submit(store.transact, read, writes=False)  # it holds the only open connection
        assert reads.wait(60)
        for file in tmp_path.glob("store.db*"):
            file.unlink()
        store.check_in_place()
        go_on.set()
        reading.result()
        assert isinstance(store.lost, StoreLost)
        assert store.rows(["q1"]).keys() == {"a", "b"}


def test_a_write_in_flight_during_the_rescue_is_in_the_copy(url: str, tmp_path: Path) -> None:
    def write(connection: sa.Connection) -> None:
        for file in tmp_path.glob("store.db*") if store.lost is None else ():
            file.unlink()
        threads.submit(store.check_in_place).result()
        connection.execute(sa.insert(samples_table).values(asdict(answered("a"))))

    with Store(url) as store, ThreadPoolExecutor(1) as threads:
        store.transact(write)
        assert isinstance(store.lost, StoreLost)
        assert store.rows(["q1"]).keys() == {"a"}
