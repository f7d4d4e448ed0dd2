"""Two runs of one dataset at the same time: one waits for the other, and nothing is asked for twice."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from malt.interruption import MESSAGE
from malt.spec import Role
from malt.summary import RunSummary
from tests.configs import QUESTIONS, write_config
from tests.flows.conftest import beside_progress
from tests.flows.test_process import start, wait_for_requests
from tests.flows.test_rerun import rerun_of
from tests.postgres import postgres as postgres
from tests.providers import ScriptedProvider

WAITS = "dataset sums: waiting for flow run sums"
ALL = 13 * QUESTIONS
Run = subprocess.Popen[str]


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """A dataset that takes a few seconds to grow."""
    provider.latency_s = 1.0
    return write_config(tmp_path, provider)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of either kind."""
    if request.param == "postgresql":
        monkeypatch.setenv("MALT_STORE_URL", request.getfixturevalue("postgres"))


def both(config: Path, provider: ScriptedProvider) -> tuple[Run, Run]:
    """Start a run, and another one as soon as it asks."""
    first = start(config, "--json")
    wait_for_requests(provider, 1, first)
    return first, start(config, "--json")


def until_it_waits(run: Run) -> str:
    assert run.stderr is not None
    return run.stderr.readline()


def summary_of(run: Run) -> RunSummary:
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    return RunSummary.model_validate(json.loads(out))


@pytest.mark.usefixtures("store")
def test_the_second_run_waits_and_asks_for_nothing(config: Path, provider: ScriptedProvider) -> None:
    first, second = both(config, provider)
    with first, second:
        said = until_it_waits(second)
        summaries = summary_of(first), summary_of(second)
    assert said.startswith(WAITS)
    assert f"process {first.pid} on " in said
    assert [summary.requests for summary in summaries] == [ALL, 0]
    assert {summary.content_sha256 for summary in summaries} == {summaries[0].content_sha256}
    assert [summary.created for summary in summaries] == [True, False]
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)


def test_a_run_that_waits_goes_on_when_the_other_is_killed(config: Path, provider: ScriptedProvider) -> None:
    first, second = both(config, provider)
    with first, second:
        until_it_waits(second)
        first.kill()
        first.communicate()
        summary = summary_of(second)
    assert summary.complete == QUESTIONS


def test_a_run_that_waits_can_be_interrupted(config: Path, provider: ScriptedProvider) -> None:
    first, second = both(config, provider)
    with first, second:
        until_it_waits(second)
        stopped_at = time.monotonic()
        second.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=60)
        took_s = time.monotonic() - stopped_at
        assert first.poll() is None
        first.kill()
    assert second.returncode == 130
    assert beside_progress(err) == f"error: {MESSAGE}"
    assert took_s < 10


def test_answers_are_not_set_aside_under_a_run(config: Path, provider: ScriptedProvider) -> None:
    first = start(config, "--json")
    with first:
        wait_for_requests(provider, 1, first)
        again = rerun_of(refresh=True, roles=[Role.REFINER])
        summary = summary_of(first)
    assert (summary.version, summary.complete, summary.requests) == (1, QUESTIONS, ALL)
    assert again.requests == 0
    assert provider.request_count == ALL


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_what_an_interrupted_run_still_gets_is_not_asked_for_by_the_next(
    config: Path, provider: ScriptedProvider, runner: str
) -> None:
    first = start(config, "--json", "-s", f"run.task_runner={runner}")
    wait_for_requests(provider, 1, first)
    second = start(config, "--json")
    with first, second:
        until_it_waits(second)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
        summary = summary_of(second)
    assert first.returncode == 130
    assert summary.complete == QUESTIONS
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)
