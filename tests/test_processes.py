"""Restarting killed processes unless they keep failing; and a session's scheduling weight, that of its leader."""

import subprocess
import sys
from pathlib import Path

import pytest

from malt.processes import Restarts


@pytest.mark.parametrize("apart_s", [0.0, 11.9])
def test_a_process_that_keeps_failing_is_given_up_after_five_restarts(apart_s: float) -> None:
    restarts = Restarts()
    assert [restarts.grant(apart_s * kill) for kill in range(6)] == [True] * 5 + [False]


def test_a_process_that_runs_long_enough_is_always_restarted() -> None:
    restarts = Restarts()
    assert all(restarts.grant(12.0 * kill) for kill in range(50))


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="Linux alone weighs sessions")
@pytest.mark.parametrize("leads_session", [True, False])
def test_a_worker_s_run_gives_its_niceness_to_its_own_session_and_to_no_other(leads_session: bool) -> None:
    code = "import os; n = os.nice(7); import flows; print(n, open('/proc/self/autogroup').read())"
    command = [sys.executable, "-c", code]
    if not leads_session:
        command = [sys.executable, "-c", f"import subprocess; subprocess.run({command})"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True).stdout
    niceness, _, _, weighs = said.split()
    assert weighs == (niceness if leads_session else "0")
