"""Two runs of one dataset at the same time: one waits for the other, and nothing is asked for twice."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from malt.config.roles import Role
from malt.engine.build import RunSummary
from malt.engine.signals import MESSAGE
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import beside_progress
from tests.flows.test_process import STARTS_WITHIN_S, STOP_LIMIT_S, start, wait_for_requests
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
def two_runs(config: Path, provider: ScriptedProvider, *options: str) -> Iterator[tuple[Run, Run, str]]:
    """A run that has asked for its first answers, another one that waits for it, and what that one said."""
    with start(config, "--json", *options) as first:
        wait_for_requests(provider, QUESTIONS, first)
        with start(config, "--json") as second:
            assert second.stderr is not None
            yield first, second, second.stderr.readline()


def wait_until_told(caplog: pytest.LogCaptureFixture, rerunning: "Future[RunSummary]") -> None:
    while WAITS not in caplog.text:
        assert not rerunning.done(), rerunning.result()
        time.sleep(0.05)


def summary_of(run: Run) -> RunSummary:
    out, err = run.communicate(timeout=STARTS_WITHIN_S)
    assert run.returncode == 0, err
    return RunSummary.model_validate(json.loads(out))


@pytest.mark.usefixtures("store")
def test_the_second_run_waits_and_asks_for_nothing(config: Path, provider: ScriptedProvider) -> None:
    with two_runs(config, provider) as (first, second, said):
        provider.holds = False
        summaries = summary_of(first), summary_of(second)
    assert said.startswith(WAITS)
    assert f"process {first.pid} on " in said
    assert [summary.requests for summary in summaries] == [ALL, 0]
    assert {summary.content_sha256 for summary in summaries} == {summaries[0].content_sha256}
    assert [summary.created for summary in summaries] == [True, False]
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)


def test_a_run_that_waits_goes_on_when_the_other_is_killed(config: Path, provider: ScriptedProvider) -> None:
    with two_runs(config, provider) as (first, second, _):
        first.kill()
        first.communicate()
        provider.holds = False
        summary = summary_of(second)
    assert (summary.complete, summary.requests) == (QUESTIONS, ALL)


def test_a_run_that_waits_can_be_interrupted(config: Path, provider: ScriptedProvider) -> None:
    with two_runs(config, provider) as (first, second, _):
        second.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=STOP_LIMIT_S)
        assert first.poll() is None
        first.kill()
    assert second.returncode == 130
    assert beside_progress(err) == f"error: {MESSAGE}"


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
    config: Path, provider: ScriptedProvider, runner: str
) -> None:
    if runner in ("dask", "ray"):
        pytest.importorskip(f"prefect_{runner}")
    with two_runs(config, provider, "-s", f"run.task_runner={runner}") as (first, second, _):
        first.send_signal(signal.SIGINT)
        time.sleep(1.0)  # in which a run that did not care would let go of the lock
        provider.holds = False
        first.communicate(timeout=STOP_LIMIT_S)
        summary = summary_of(second)
    assert first.returncode == 130
    assert summary.complete == QUESTIONS
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)
