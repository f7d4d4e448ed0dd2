"""What is killed is started again, unless it does not last."""

import pytest

from malt.processes import Restarts


@pytest.mark.parametrize("apart_s", [0.0, 11.9])
def test_what_does_not_last_is_given_up_after_five_restarts(apart_s: float) -> None:
    restarts = Restarts()
    assert [restarts.grant(apart_s * kill) for kill in range(6)] == [True] * 5 + [False]


def test_what_lasts_is_started_again_however_often() -> None:
    restarts = Restarts()
    assert all(restarts.grant(12.0 * kill) for kill in range(50))
