"""`malt run` as a process: its output, its Prefect server, and that it stops soon whatever it waits for."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.engine.build import RunSummary
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import beside_progress
from tests.forking import MALT, PROJECT, Process
from tests.providers import ScriptedProvider

STOP_LIMIT_S = 120.0
"""Limit for a busy machine; an idle one takes less than 10 s, a run that ignores the signal never ends."""
STARTS_WITHIN_S = 300.0


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_config(tmp_path, provider)


def start(config: Path, *options: str) -> Process:
    """Start a run that reports to the tests' server."""
    return Process(MALT, "run", config, *options)


def test_a_run_with_a_server_of_its_own_prints_its_summary_and_nothing_else(
    config: Path, provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be used for local servers
    command = [str(Path(sys.executable).parent / "malt"), "run", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=STARTS_WITHIN_S, check=False)
    summary = RunSummary.model_validate(json.loads(done.stdout))
    assert (done.returncode, beside_progress(done.stderr)) == (0, "")
    assert summary.requests == provider.request_count == 13 * QUESTIONS
    assert (tmp_path / "data" / "prefect" / "prefect.db").exists()


def test_a_run_at_a_named_server_prints_its_summary_for_people(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["run", str(config), "--limit", "2"]) == 0
    out, err = capfd.readouterr()
    assert beside_progress(err) == ""
    assert out.splitlines()[0].startswith("sums@v1 (new): ")
    assert "2 of 2 questions complete" in out
    assert not (tmp_path / "data" / "prefect").exists()


def wait_for_requests(provider: ScriptedProvider, count: int, process: Process) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while provider.request_count < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_waits_for_a_slow_model_still_ends_soon(config: Path, provider: ScriptedProvider) -> None:
    provider.latency_s = 600.0
    with start(config) as process:
        wait_for_requests(provider, 1, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=STOP_LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
