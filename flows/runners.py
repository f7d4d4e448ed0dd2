"""Where batches run: threads, processes, Dask or Ray; how many processes share the limits, and how they are stopped."""

import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from malt.errors import ConfigError
from malt.interruption import begin_worker, stopped_by
from malt.settings import Settings
from malt.spec import RunSpec

B = TypeVar("B")
G = TypeVar("G")

THREADS = 4
"""Batches under way at once in one process; each holds many requests, so few are enough."""


@dataclass(frozen=True)
class Crew:
    """Processes that work on a run's batches, each within an equal share of its limits."""

    runner: TaskRunner[Any]
    processes: int
    """How many shares the limits are cut into."""
    batches: int
    """Under way at once. Where others may join a cluster it is one a share: however many there are, the rest idle."""
    stop: Callable[[], None]
    """Let what the run asks from other processes arrive, write it, and ask no more; may be called again."""

    def work(
        self, batches: Iterable[B], submit: Callable[[B], PrefectFuture[G]], count: Callable[[G], None]
    ) -> list[G]:
        """Return what comes of each batch, in order; once a signal came or one has failed, no more is begun."""
        ended, one_at_a_time = threading.Event(), threading.Lock()

        def stop() -> None:
            ended.set()
            self.stop()

        def work_on(batch: B) -> list[G]:
            if ended.is_set():
                return []
            try:
                with one_at_a_time:
                    future = submit(batch)
                grown = future.result()
            except BaseException:
                ended.set()
                raise
            with one_at_a_time:
                count(grown)
            return [grown]

        with self.runner, stopped_by(stop), ThreadPoolExecutor(self.batches) as hands:
            try:
                done = [hands.submit(copy_context().run, work_on, batch) for batch in batches]
                return [grown for each in done for grown in each.result()]
            finally:
                stop()


def crew_of(spec: RunSpec, settings: Settings, run: str) -> Crew:
    """Return who works on a run, as `run.task_runner` names them. Raises `ConfigError` where they cannot.

    There are never more processes than requests may be in flight: each needs one.
    """
    processes = min(os.cpu_count() or 1, spec.limits.max_in_flight)
    match spec.run.task_runner:
        case "threads":
            return Crew(ThreadPoolTaskRunner(max_workers=THREADS), 1, THREADS, nothing)
        case "processes":
            pool = ProcessPoolTaskRunner(max_workers=processes, initializer=begin_worker)
            return Crew(pool, processes, processes, stop_children)
        case "ray":
            return Crew(*imported("flows.on_ray", "ray").cluster(processes, spec, settings))
        case "dask":
            return Crew(*imported("flows.on_dask", "dask").own_cluster(processes, run))
        case address:
            return Crew(*imported("flows.on_dask", "dask").cluster_at(address, spec, settings, run))


def imported(module: str, extra: str) -> ModuleType:
    """Import what needs one of the project's extras. Raises `ConfigError` where that is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"run.task_runner on {extra.capitalize()} needs the package {missing.name!r}: install malt-trees[{extra}]"
        ) from missing


def nothing() -> None:
    """Stop nothing: what this process asks is stopped with its sessions."""


def stop_children() -> None:
    """Tell the processes of a pool to stop, as `begin_worker` has taught them."""
    for child in multiprocessing.active_children():
        child.terminate()
