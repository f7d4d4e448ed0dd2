"""Two runs of one dataset at once: one waits until the other ends in any way, and nothing is requested twice."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from malt.config.roles import Role
from malt.engine.build import RunSummary
from malt.engine.signals import MESSAGE
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import Malt, Ran, beside_progress
from tests.flows.test_process import STARTS_WITHIN_S, STOP_LIMIT_S, start, wait_for_requests
from tests.flows.test_rerun import rerun_of
from tests.forking import Process
from tests.postgres import postgres as postgres
from tests.providers import ScriptedProvider

WAITS = "dataset sums: waiting for flow run sums"
ALL = 13 * QUESTIONS
_HEARD_AFTER_S = 3.0
"""Seconds after which a signalled run has begun to stop, and still waits for its answers."""


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """Config whose provider holds all requests, so that a run lasts until the test releases them."""
    provider.holds = True
    return write_config(tmp_path, provider)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store in SQLite or in PostgreSQL."""
    if request.param == "postgresql":
        monkeypatch.setenv("MALT_STORE_URL", request.getfixturevalue("postgres"))


@contextmanager
def two_runs(
    config: Path,
    provider: ScriptedProvider,
    malt: Malt,
    caplog: pytest.LogCaptureFixture,
    *options: str,
    asked: int = QUESTIONS,
) -> Iterator[tuple[Process, "Future[Ran]"]]:
    """Yield a run that has sent its first requests, and a second one, in this process, that waits for it."""
    with start(config, "--json", *options) as first, ThreadPoolExecutor(1) as pool:
        try:
            wait_for_requests(provider, asked, first)
            second = pool.submit(copy_context().run, malt, "run", config)
            wait_until_second_waits(caplog, second)
            yield first, second
        finally:
            provider.holds, provider.holds_from = False, math.inf


def wait_until_second_waits(caplog: pytest.LogCaptureFixture, run: "Future[Any]") -> None:
    while WAITS not in caplog.text:
        assert not run.done(), run.result()
        time.sleep(0.05)


def summary_of(run: Process) -> RunSummary:
    out, err = run.communicate(timeout=STARTS_WITHIN_S)
    assert run.returncode == 0, err
    return RunSummary.model_validate(json.loads(out))


@pytest.mark.usefixtures("store")
def test_the_second_run_waits_and_asks_for_nothing(
    config: Path, provider: ScriptedProvider, malt: Malt, caplog: pytest.LogCaptureFixture
) -> None:
    with two_runs(config, provider, malt, caplog) as (first, second):
        provider.holds = False
        summaries = summary_of(first), second.result().summary
    [said] = [message for message in caplog.messages if message.startswith(WAITS)]
    assert f"process {first.pid} on " in said
    assert [summary.requests for summary in summaries] == [ALL, 0]
    assert {summary.content_sha256 for summary in summaries} == {summaries[0].content_sha256}
    assert [summary.created for summary in summaries] == [True, False]
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)


def test_a_run_that_waits_can_be_interrupted_and_goes_on_when_the_other_is_killed(
    config: Path, provider: ScriptedProvider, malt: Malt, caplog: pytest.LogCaptureFixture
) -> None:
    with two_runs(config, provider, malt, caplog) as (first, second):
        with start(config, "--json") as third:
            while not third.said[1].startswith(WAITS):
                assert third.poll() is None, third.said
                time.sleep(0.05)
            third.send_signal(signal.SIGINT)
            _, err = third.communicate(timeout=STOP_LIMIT_S)
        assert (third.returncode, beside_progress(err).splitlines()[1:]) == (130, [f"error: {MESSAGE}"])
        assert first.poll() is None
        first.kill()
        first.communicate()
        provider.holds = False
        summary = second.result().summary
    assert (summary.complete, summary.requests) == (QUESTIONS, ALL)


def test_answers_are_not_set_aside_under_a_run(
    config: Path, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    with start(config, "--json") as first:
        wait_for_requests(provider, QUESTIONS, first)
        with ThreadPoolExecutor(1) as pool:
            rerunning = pool.submit(rerun_of, refresh=True, roles=[Role.REFINER])
            wait_until_second_waits(caplog, rerunning)
            provider.holds = False
            again = rerunning.result()
        summary = summary_of(first)
    assert (summary.version, summary.complete, summary.requests) == (1, QUESTIONS, ALL)
    assert again.requests == 0
    assert provider.request_count == ALL


@pytest.mark.parametrize(
    ("how", "option"),
    [
        (signal.SIGINT, "run.tracking=branch"),
        (signal.SIGTERM, "run.tracking=shard"),
        (signal.SIGINT, "run.task_runner=processes"),
        (signal.SIGINT, "run.task_runner=dask"),
        (signal.SIGINT, "run.task_runner=ray"),
    ],
    ids=["interrupted", "terminated", "interrupted with workers", "interrupted with Dask", "interrupted with Ray"],
)
def test_a_run_that_is_stopped_ends_soon_and_loses_nothing_to_the_one_that_waits(
    config: Path,
    provider: ScriptedProvider,
    malt: Malt,
    caplog: pytest.LogCaptureFixture,
    how: signal.Signals,
    option: str,
) -> None:
    """The stopped run must keep the lock until its answers have arrived."""
    if option.endswith(("dask", "ray")):
        pytest.importorskip(f"prefect_{option.rpartition('=')[2]}")
    provider.holds, provider.holds_from = False, 20
    with two_runs(config, provider, malt, caplog, "-s", option, asked=25) as (first, second):
        os.killpg(first.pid, how) if how is signal.SIGINT else first.send_signal(how)
        time.sleep(_HEARD_AFTER_S)
        sent, provider.holds_from = provider.request_count, math.inf
        out, err = first.communicate(timeout=STOP_LIMIT_S)
        rest = second.result().summary
    assert first.returncode == 130
    assert (out, beside_progress(err)) == ("", f"error: {MESSAGE}")
    assert (rest.complete, rest.requests, provider.request_count) == (QUESTIONS, ALL - sent, ALL)
    assert all(asked.attempt == 0 for asked in provider.requests)
    assert sorted(states_of_flow_runs()) == ["COMPLETED", "CRASHED"]


def states_of_flow_runs() -> list[str]:
    """Return the state types of the server's two latest flow runs."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
    return [run.state_type.value for run in runs if run.state_type is not None]
