"""`malt run` as a process: what it prints, which server it uses, and how it ends when it is told to."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from malt.engine.build import RunSummary
from malt.engine.signals import MESSAGE
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import Malt, beside_progress
from tests.providers import ScriptedProvider

MALT = str(Path(sys.executable).parent / "malt")
PROJECT = Path(__file__).parents[2]
BRANCH = ("-s", "run.tracking=branch")
SHARD = ("-s", "run.tracking=shard")
STOP_LIMIT_S = 120.0
"""On a busy machine; it is less than ten on one that is not, and for ever where nobody acts on the signal."""
STARTS_WITHIN_S = 300.0
_HEARD_AFTER_S = 3.0
"""By then a run acts on a signal, and still waits for its answers."""
DASK = ("-s", "run.task_runner=dask")
RAY = ("-s", "run.task_runner=ray")
PROCESSES = ("-s", "run.task_runner=processes")


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_config(tmp_path, provider)


def start(config: Path, *options: str) -> "subprocess.Popen[str]":
    """Start a run in a process group of its own, as a terminal would."""
    command = [MALT, "run", str(config), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=PROJECT, start_new_session=True)


def test_a_run_with_a_server_of_its_own_prints_its_summary_and_nothing_else(
    config: Path, provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy is not for what runs on this machine
    with start(config, "--json") as process:
        out, err = process.communicate(timeout=STARTS_WITHIN_S)
    summary = RunSummary.model_validate(json.loads(out))
    assert (process.returncode, beside_progress(err)) == (0, "")
    assert summary.requests == provider.request_count == 13 * QUESTIONS
    assert (tmp_path / "data" / "prefect" / "prefect.db").exists()


def test_a_run_at_a_named_server_prints_its_summary_for_people(config: Path, tmp_path: Path) -> None:
    with start(config, "--limit", "2") as process:
        out, err = process.communicate(timeout=STARTS_WITHIN_S)
    assert (process.returncode, beside_progress(err)) == (0, "")
    assert out.splitlines()[0].startswith("sums@v1 (new): ")
    assert "2 of 2 questions complete" in out
    assert not (tmp_path / "data" / "prefect").exists()


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (signal.SIGINT, BRANCH),
        (signal.SIGTERM, SHARD),
        (signal.SIGINT, (*SHARD, *PROCESSES)),
        (signal.SIGINT, (*SHARD, *DASK)),
        (signal.SIGTERM, (*SHARD, *DASK)),
        (signal.SIGINT, (*SHARD, *RAY)),
    ],
    ids=[
        "interrupted",
        "terminated",
        "interrupted with workers",
        "interrupted with Dask",
        "terminated with Dask",
        "interrupted with Ray",
    ],
)
def test_a_run_that_is_stopped_ends_soon_and_loses_nothing(
    malt: Malt, config: Path, provider: ScriptedProvider, how: signal.Signals, options: tuple[str, ...]
) -> None:
    for runner, package in ((DASK, "prefect_dask"), (RAY, "prefect_ray")):
        if runner[1] in options:
            pytest.importorskip(package)
    provider.holds_from = 20
    with start(config, *options) as process:
        wait_for_requests(provider, 25, process)
        os.killpg(process.pid, how) if how is signal.SIGINT else process.send_signal(how)
        time.sleep(_HEARD_AFTER_S)
        provider.holds_from = math.inf
        out, err = process.communicate(timeout=STOP_LIMIT_S)
    assert process.returncode == 130
    assert (out, beside_progress(err)) == ("", f"error: {MESSAGE}")
    sent = provider.request_count
    rest = malt("run", config).summary
    assert rest.requests == provider.request_count - sent == 13 * QUESTIONS - sent
    assert all(asked.attempt == 0 for asked in provider.requests)
    assert states_of_flow_runs()[1] == "CRASHED"  # the last one is the rest's


def states_of_flow_runs() -> list[str]:
    """How the runs that the server knows ended, the latest first."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
    return [run.state_type.value for run in runs if run.state_type is not None]


def wait_for_requests(provider: ScriptedProvider, count: int, process: "subprocess.Popen[str]") -> None:
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
