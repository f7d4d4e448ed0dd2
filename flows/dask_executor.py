"""Batches on Dask: a local cluster that lives as long as the run, or the workers of an existing scheduler."""

import asyncio
from collections.abc import Sequence
from typing import Any

import dask
from distributed import Client, KilledWorker, Security, Worker, WorkerPlugin
from prefect_dask import DaskTaskRunner

from flows.executors import Executor
from flows.worker_check import find_problem, find_version_mismatch, read_versions, serialize_prefect_settings
from malt.config.limits import Limits
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.signals import leave_terminal_to_run
from malt.errors import ConfigError
from malt.llm.client.session import stop_sessions
from malt.llm.store.database import hide_password

CONNECT_LIMIT_S = 10.0
_NO_PAGES: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask's web pages, all turned off: they would show anyone who connects what runs here and the ends of its logs."""
SAME_EVERYWHERE = ("malt-trees", "prefect", "prefect-dask", "distributed")
"""Packages whose versions must be equal on all machines of a run: they exchange pickles."""


def start_cluster(processes: int, spec: RunSpec, run: str) -> Executor:
    """Return a cluster that begins and ends with the run.

    Its TLS certificate exists only in the memory of this process and the workers. Without one, any user of this machine
    could connect to their ports and run code in them.
    """
    cluster = {
        "n_workers": processes,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",  # any free port; the default is a well-known one
        "scheduler_kwargs": {"dashboard": False},
        "security": Security.temporary(),
    }
    return make_executor(LocalDask(cluster_kwargs=cluster), spec.limits.shares(processes), run)


def join_cluster(address: str, spec: RunSpec, settings: Settings, run: str) -> Executor:
    """Return the workers of a scheduler after checking each of them. Raises `ConfigError`."""
    named = f"run.task_runner = {address!r}"
    if settings.store.startswith("sqlite"):
        raise ConfigError(
            f"{named} may spread over machines, and the store {hide_password(settings.store)} is a file of this one: "
            "set MALT_STORE_URL to a PostgreSQL database"
        )
    workers = check_workers(address, named, spec, settings)
    shares = spec.limits.shares(min(workers, spec.limits.most_shares), workers)
    return make_executor(DaskTaskRunner(address=address), shares, run)


def make_executor(runner: DaskTaskRunner, shares: Sequence[Limits], run: str) -> Executor:
    """Return an executor that stops the run on every worker of the cluster."""
    return Executor(runner, shares, lambda: stop_run_everywhere(runner.client, run), (KilledWorker,))


def stop_run_everywhere(client: Client, run: str) -> None:
    """Stop a run on every worker, and wait until each has stored its last answers; dead workers are ignored."""
    client.run(stop_run, run, on_error="ignore")


async def stop_run(run: str) -> None:
    """On a worker, stop a run's session in a thread: the worker's event loop keeps the scheduler's connection alive."""
    await asyncio.to_thread(stop_sessions, run)


class LocalDask(DaskTaskRunner):  # type: ignore[misc]  # has no types
    """A runner without web pages, whose workers ignore the terminal's signals: the run itself handles Ctrl-C."""

    def __enter__(self) -> "LocalDask":
        super().__enter__()
        self._exit_stack.enter_context(dask.config.set(_NO_PAGES))  # holds for replacement workers too
        self.client.register_plugin(LeaveTerminalToRun())  # the first use of the client starts the cluster
        return self


class LeaveTerminalToRun(WorkerPlugin):  # type: ignore[misc]
    """Makes a worker process, and its replacements, ignore the terminal's signals."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """Ignore the signals; Dask calls this in the main thread of the process."""
        leave_terminal_to_run()


def check_workers(address: str, named: str, spec: RunSpec, settings: Settings) -> int:
    """Return the number of a scheduler's workers. Raises `ConfigError` if there are none or one cannot take part."""
    try:
        client = Client(address, timeout=CONNECT_LIMIT_S, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"{named}: no Dask scheduler answers there; start it, or correct the address") from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ConfigError(f"{named} has no workers; start some: dask worker {address}")
        try:
            problems = client.run(find_version_mismatch, read_versions(SAME_EVERYWHERE))
            if not any(problems.values()):
                problems = client.run(find_problem_here, spec, settings, serialize_prefect_settings())
        except ModuleNotFoundError as error:
            raise ConfigError(f"{named}: a worker has no {error.name!r}; start it in the project's folder") from error
    for worker, problem in problems.items():
        if problem:
            raise ConfigError(f"{named}: the worker {worker} cannot take part: {problem}")
    return len(problems)


async def find_problem_here(spec: RunSpec, settings: Settings, prefect: dict[str, Any]) -> str | None:
    """On a worker, look for problems in a thread, outside the worker's event loop."""
    return await asyncio.to_thread(find_problem, spec, settings, prefect)
