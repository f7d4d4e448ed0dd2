"""Two runs of one dataset at the same time: one waits for the other, and nothing is asked for twice."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from malt.config.roles import Role
from malt.engine.build import RunSummary
from malt.engine.signals import MESSAGE
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import Malt, Ran, beside_progress
from tests.flows.test_process import STOPPED_WITHIN_S, start, wait_for_requests
from tests.flows.test_rerun import rerun_of
from tests.postgres import postgres as postgres
from tests.providers import ScriptedProvider

WAITS = "dataset sums: waiting for flow run sums"
ALL = 13 * QUESTIONS
Run = subprocess.Popen[str]


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """A dataset whose provider keeps all requests waiting, so that its run goes on until it is let."""
    provider.holds = True
    return write_config(tmp_path, provider)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of either kind."""
    if request.param == "postgresql":
        monkeypatch.setenv("MALT_STORE_URL", request.getfixturevalue("postgres"))


@contextmanager
def two_runs(
    config: Path, provider: ScriptedProvider, malt: Malt, caplog: pytest.LogCaptureFixture, *options: str
) -> Iterator[tuple[Run, "Future[Ran]"]]:
    """A run that has asked for its first answers, and another one, in this process, that waits for it."""
    with start(config, "--json", *options) as first, ThreadPoolExecutor(1) as pool:
        try:
            wait_for_requests(provider, QUESTIONS, first)
            second = pool.submit(copy_context().run, malt, "run", config)
            wait_until_told(caplog, second)
            yield first, second
        finally:
            provider.holds = False


def wait_until_told(caplog: pytest.LogCaptureFixture, run: "Future[Any]") -> None:
    while WAITS not in caplog.text:
        assert not run.done(), run.result()
        time.sleep(0.05)


def summary_of(run: Run) -> RunSummary:
    out, err = run.communicate(timeout=120)
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


def test_a_run_that_waits_goes_on_when_the_other_is_killed(
    config: Path, provider: ScriptedProvider, malt: Malt, caplog: pytest.LogCaptureFixture
) -> None:
    with two_runs(config, provider, malt, caplog) as (first, second):
        first.kill()
        first.communicate()
        provider.holds = False
        summary = second.result().summary
    assert (summary.complete, summary.requests) == (QUESTIONS, ALL)


def test_a_run_that_waits_can_be_interrupted(config: Path, provider: ScriptedProvider) -> None:
    with start(config, "--json") as first:
        wait_for_requests(provider, QUESTIONS, first)
        with start(config, "--json") as second:
            assert second.stderr is not None
            assert second.stderr.readline().startswith(WAITS)
            stopped_at = time.monotonic()
            second.send_signal(signal.SIGINT)
            _, err = second.communicate(timeout=60)
            took_s = time.monotonic() - stopped_at
        assert first.poll() is None
        first.kill()
    assert second.returncode == 130
    assert beside_progress(err) == f"error: {MESSAGE}"
    assert took_s < STOPPED_WITHIN_S


def test_answers_are_not_set_aside_under_a_run(
    config: Path, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    with start(config, "--json") as first:
        wait_for_requests(provider, QUESTIONS, first)
        with ThreadPoolExecutor(1) as pool:
            rerunning = pool.submit(rerun_of, refresh=True, roles=[Role.REFINER])
            wait_until_told(caplog, rerunning)
            provider.holds = False
            again = rerunning.result()
        summary = summary_of(first)
    assert (summary.version, summary.complete, summary.requests) == (1, QUESTIONS, ALL)
    assert again.requests == 0
    assert provider.request_count == ALL


@pytest.mark.parametrize("runner", ["threads", "processes", "dask", "ray"])
def test_what_an_interrupted_run_still_gets_is_not_asked_for_by_the_next(
    config: Path, provider: ScriptedProvider, malt: Malt, caplog: pytest.LogCaptureFixture, runner: str
) -> None:
    if runner in ("dask", "ray"):
        pytest.importorskip(f"prefect_{runner}")
    with two_runs(config, provider, malt, caplog, "-s", f"run.task_runner={runner}") as (first, second):
        first.send_signal(signal.SIGINT)
        time.sleep(1.0)  # in which a run that did not care would let go of the lock
        provider.holds = False
        first.communicate(timeout=60)
        summary = second.result().summary
    assert first.returncode == 130
    assert summary.complete == QUESTIONS
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)
