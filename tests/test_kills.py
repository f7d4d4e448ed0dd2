"""kill -9 at a random moment: the short form of `python -m benchmarks.faults.kills`, which kills more."""

from collections.abc import Iterator

import pytest

from benchmarks.faults.kills import Place, Torment, kill_postgres, kill_run, kill_server, place_for
from tests.postgres import Postgres

SEED = 4711
UNDER_WAY = 12
"""Requests of three models, four each: on a busy machine their answers may be sent, and not be written for a while."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_for(SEED) as made:
        yield made


@pytest.mark.parametrize("torment", [kill_run, kill_server, kill_postgres])
def test_what_is_killed_costs_no_answer_and_changes_no_dataset(place: Place, torment: Torment) -> None:
    if torment is kill_postgres and not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    account = torment(place, 1)
    assert (account.kills, account.same) == (1, account.rounds)
    assert account.repeats <= account.lost
    assert account.lost <= (UNDER_WAY if torment is kill_run else 0)
