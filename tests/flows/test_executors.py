"""Task runners: threads, processes and Dask workers make the same dataset, each within its share of the limits."""

import importlib
import json
import math
import multiprocessing
import os
import signal
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.executors import WORKER_DIED, Executor, open_executor
from flows.worker_check import find_problem, find_version_mismatch, read_versions, serialize_prefect_settings
from malt.cli.main import exit_code
from malt.config.limits import Limits
from malt.config.loader import load_spec
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import Store
from malt.questions.question import read_questions
from tests.configs import QUESTIONS, REQUESTS, write_config
from tests.flows.conftest import Malt, beside_progress
from tests.flows.test_process import STARTS_WITHIN_S, STOP_LIMIT_S, start, wait_for_requests
from tests.forking import Process
from tests.mishaps import Asked
from tests.postgres import Postgres, free_port
from tests.providers import ScriptedProvider, Sent

REFERENCE = "threads"
ALL = 13 * QUESTIONS
IN_FLIGHT, PER_MINUTE = 8, 600
ONE_ENDPOINT = tuple(f"roles.{role}.model=openai/one" for role in REQUESTS)


def chosen(*overrides: str) -> list[str]:
    return [f"--set={override}" for override in overrides]


def digest(malt: Malt, config: Path, runner: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Run in a separate data folder with the `math` grader; return the content digest."""
    monkeypatch.setenv("MALT_DATA_DIR", str(folder / runner))
    overrides = chosen(f"run.task_runner={runner}", "evaluator.kind=math", "limits.max_in_flight=4", *ONE_ENDPOINT)
    ran = malt("run", config, *overrides)
    assert (ran.code, ran.stderr, ran.summary.requests) == (0, "", 13 * 4)
    assert ran.summary.outcomes["right"] > 0
    return ran.summary.content_sha256


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_every_task_runner_makes_the_same_dataset(
    malt: Malt, runner: str, tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner != "processes":
        pytest.importorskip(f"prefect_{runner}")
    provider.latency_s = 0.05
    config = write_config(tmp_path, provider, questions=4)
    spread = digest(malt, config, runner, tmp_path, monkeypatch)
    assert provider.max_in_flight <= 4
    assert multiprocessing.active_children() == []
    assert spread == digest(malt, config, REFERENCE, tmp_path, monkeypatch)


@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_there_are_no_more_processes_than_requests_in_flight(
    runner: str, provider: ScriptedProvider, tmp_path: Path
) -> None:
    if runner == "dask":
        pytest.importorskip("prefect_dask")
    config = write_config(tmp_path, provider)
    spec = load_spec(config, [f"run.task_runner={runner}", "limits.max_in_flight=1"])
    assert len(open_executor(spec, Settings(), "run").shares) == 1


def test_a_cluster_of_ours_takes_no_code_of_others_and_shows_no_pages(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    """Other users of the machine can reach the ports of a local cluster."""
    distributed = pytest.importorskip("distributed")
    spec = load_spec(write_config(tmp_path, provider))
    with importlib.import_module("flows.dask_executor").start_cluster(0, spec, "run").runner as runner:
        place = runner.client.scheduler.address.removeprefix("tls://")
        others = {f"tcp://{place}": None, f"tls://{place}": distributed.Security.temporary()}
        for address, security in others.items():
            with pytest.raises(OSError, match=r"Connection|TLS|Timed out"):
                distributed.Client(address, security=security, timeout=2, set_as_default=False)
        assert runner.client.run_on_scheduler(os.getpid) == os.getpid()
        port = runner.client.cluster.scheduler.http_server.port
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/info/main/workers.html")


@pytest.mark.parametrize(("failure", "told"), [(ValueError("failed"), "failed"), (BrokenProcessPool(), WORKER_DIED)])
def test_once_a_batch_has_failed_no_more_are_looked_for(failure: Exception, told: str) -> None:
    def submit(*_: object) -> PrefectFuture[None]:
        raise failure

    looked_for = iter(range(1_000_000))
    crew = Executor(ThreadPoolTaskRunner(max_workers=1), [Limits()], lambda: None, death_errors=(BrokenProcessPool,))
    with pytest.raises(Exception, match=told):
        crew.map(looked_for, submit, print)
    assert next(looked_for, None) is not None


def test_a_store_or_scheduler_that_workers_cannot_reach_is_refused_before_any_request(
    capfd: pytest.CaptureFixture[str],
    provider: ScriptedProvider,
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("prefect_dask")
    config, address = write_config(tmp_path, provider), f"tcp://127.0.0.1:{free_port()}"
    elsewhere = chosen(f"run.task_runner={address}")
    assert "is a file of this one: set MALT_STORE_URL to a PostgreSQL database" in refusal(capfd, config, elsewhere)
    monkeypatch.setenv("MALT_STORE_URL", database)
    assert "no Dask scheduler answers there" in refusal(capfd, config, elsewhere)
    assert provider.request_count == 0


def test_a_worker_that_could_not_take_part_says_why(provider: ScriptedProvider, tmp_path: Path) -> None:
    spec, settings = load_spec(write_config(tmp_path, provider)), Settings()
    here, nowhere = serialize_prefect_settings(), f"http://127.0.0.1:{free_port()}/api"
    assert find_problem(spec, settings, here) is None
    with temporary_settings({PREFECT_API_URL: nowhere}):
        assert f"cannot reach the run's Prefect server, {nowhere}" in (
            find_problem(spec, settings, serialize_prefect_settings()) or ""
        )
    roles = {
        role: {**model, "api_key_env": None, "api_key_block": "absent"}
        for role, model in spec.as_config()["roles"].items()
    }
    keyless = RunSpec.model_validate({**spec.as_config(), "roles": roles})
    assert "has no Secret block of that name" in (find_problem(keyless, settings, here) or "")
    elsewhere = Settings(store_url=f"postgresql://malt@127.0.0.1:{free_port()}/postgres")
    assert "cannot be used" in (find_problem(spec, elsewhere, here) or "")


def test_a_worker_of_another_version_says_so() -> None:
    wanted = read_versions(["prefect"])
    assert find_version_mismatch(wanted) is None
    assert (
        find_version_mismatch({**wanted, "prefect": "2.0"})
        == f"it has prefect {wanted['prefect']}, and this run 2.0; install the same"
    )


def refusal(capfd: pytest.CaptureFixture[str], config: Path, options: list[str]) -> str:
    """Return the error message of a run that fails because of bad input."""
    assert exit_code(["run", str(config), *options]) == 2
    return capfd.readouterr().err


class DaskCluster:
    """A Dask scheduler and worker processes, started as a user would on other machines; a context manager."""

    def __init__(self, workers: int, environment: dict[str, str] | None = None) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._environment = {**os.environ, **(environment or {})}
        self._workers = workers
        self.workers: list[Process] = []

    def __enter__(self) -> "DaskCluster":
        self._stack = ExitStack()
        host, port = self.address.removeprefix("tcp://").split(":")
        self._start("scheduler", "--host", host, "--port", port, "--no-dashboard")
        self.workers = [self.start_worker() for _ in range(self._workers)]
        self.wait_for(self._workers)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_worker(self) -> Process:
        """Start a worker without a nanny, so that it is not restarted after a kill."""
        quiet = ("--no-nanny", "--no-dashboard", "--nthreads", "2", "--local-directory", os.environ["TMPDIR"])
        return self._start("worker", self.address, *quiet)

    def wait_for(self, workers: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=STARTS_WITHIN_S, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=STARTS_WITHIN_S)

    def _start(self, kind: str, *arguments: str) -> Process:
        started = Process(f"distributed.cli.dask_{kind}", *arguments, environment=self._environment)
        return self._stack.enter_context(started)


def end(process: Process) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty database on a separate server."""
    pytest.importorskip("psycopg")
    if not Postgres.is_here():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    with Postgres() as server:
        yield server.url("postgres")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaskCluster]:
    pytest.importorskip("prefect_dask")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with DaskCluster(workers=2) as started:
        yield started


def test_workers_that_are_killed_and_join_stay_inside_the_limits_and_make_the_dataset_of_one_process(
    malt: Malt,
    cluster: DaskCluster,
    database: str,
    tmp_path: Path,
    provider: ScriptedProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_config(tmp_path, provider)
    alone = malt("run", config, *chosen(*ONE_ENDPOINT)).summary.content_sha256
    before, provider.latency_s, provider.max_in_flight = len(provider.sent), 0.2, 0
    monkeypatch.setenv("MALT_STORE_URL", database)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "spread"))
    limits = (f"limits.max_in_flight={IN_FLIGHT}", f"limits.requests_per_minute={PER_MINUTE}")
    options = chosen(f"run.task_runner={cluster.address}", "run.tracking=shard", *ONE_ENDPOINT, *limits)
    with start(config, "--json", *options) as process:
        wait_for_requests(provider, ALL + 30, process)
        killed_at = time.monotonic()
        end(cluster.workers[0])
        gone_at = time.monotonic()
        cluster.start_worker()
        out, err = process.communicate(timeout=STARTS_WITHIN_S)
    assert (process.returncode, beside_progress(err)) == (0, "")
    assert json.loads(out)["content_sha256"] == alone
    assert provider.max_in_flight <= IN_FLIGHT
    assert most_above(PER_MINUTE / 60, [asked.at for asked in provider.requests[ALL:]]) <= 2 * AHEAD
    kept = [sent for sent in provider.sent[before:] if not killed_at - ON_THE_WIRE_S < sent.at < gone_at]
    had = {json.dumps(sent.asked.body, sort_keys=True): sent.at for sent in kept}
    assert [each for each in provider.requests[ALL:] if is_repeated(each, had)] == []


def test_a_worker_process_that_is_killed_ends_the_run_in_one_sentence_and_the_others_write_what_they_get(
    malt: Malt, tmp_path: Path, provider: ScriptedProvider
) -> None:
    config = write_config(tmp_path, provider)
    provider.holds_from = 20
    with start(config, *chosen("run.task_runner=processes", "run.tracking=shard")) as process:
        wait_for_requests(provider, 25, process)
        killed = kill(workers_of(process.pid)[0])
        provider.holds_from = math.inf
        out, err = process.communicate(timeout=STOP_LIMIT_S)
    assert (process.returncode, out) == (3, "")
    assert beside_progress(err) == f"error: {WORKER_DIED}"
    assert lost(provider.sent, stored(config), killed) == []
    assert malt("run", config).code == 0
    assert lost(provider.sent, stored(config), killed) == []


def workers_of(pid: int) -> list[int]:
    """Return the process ids of a run's workers."""
    return [
        each.pid for each in psutil.Process(pid).children(recursive=True) if "spawn_main" in " ".join(each.cmdline())
    ]


def kill(pid: int) -> set[int]:
    """Kill a process; return the local ports of its connections."""
    os.kill(pid, signal.SIGSTOP)
    process = psutil.Process(pid)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    ports = {connection.laddr.port for connection in process.net_connections("tcp")}
    os.kill(pid, signal.SIGKILL)
    return ports


AHEAD = 3
"""Requests by which a process may exceed its rate: one at the exact start of a span, one that makes up for a missed
moment, and one that was about to be sent while the machine was busy.
"""


def most_above(per_second: float, times: Sequence[float]) -> float:
    """Return the largest excess of requests over the rate, in any span of time."""
    spans = ((first, last) for first in range(len(times)) for last in range(first, len(times)))
    return max(last - first + 1 - per_second * (times[last] - times[first]) for first, last in spans)


ON_THE_WIRE_S = 1.0
"""Answers sent within this time before a worker died may not have been stored."""


def is_repeated(asked: Asked, had: dict[str, float]) -> bool:
    """Whether a request was sent again after its answer."""
    return asked.at > had.get(json.dumps(asked.body, sort_keys=True), asked.at)


def stored(config: Path) -> list[StoredSample]:
    """Return the stored samples of a config's questions."""
    with Store(Settings().store) as store:
        rows = store.rows(question.question_id for question in read_questions(load_spec(config).questions))
    return list(rows.values())


def lost(sent: Sequence[Sent], rows: Sequence[StoredSample], killed: set[int]) -> list[Sent]:
    """Return the answers that the store lacks, for example duplicates; those to killed processes do not count."""
    kept = {json.loads(row.response)["id"] for row in rows if row.response}
    return [each for each in sent if each.id not in kept and each.asked.port not in killed]
