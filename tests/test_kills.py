"""kill -9 at a random moment: the short form of `python -m benchmarks.faults.kills`, which kills more."""

from collections.abc import Iterator

import pytest

from benchmarks.faults.kills import KillTest, Place, kill_postgres, kill_run, kill_server, place_for
from tests.postgres import Postgres

SEED = 4711
IN_FLIGHT = 12
"""Requests in flight, four for each of three models: on a busy machine their answers may be sent but not yet stored."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_for(SEED) as made:
        yield made


@pytest.mark.parametrize("kill_test", [kill_run, kill_server, kill_postgres])
def test_a_kill_costs_no_answer_and_changes_no_dataset(place: Place, kill_test: KillTest) -> None:
    if kill_test is kill_postgres and not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    account = kill_test(place, 1)
    assert (account.kills, account.same) == (1, account.rounds)
    assert account.repeats <= account.lost
    assert account.lost <= (IN_FLIGHT if kill_test is kill_run else 0)
