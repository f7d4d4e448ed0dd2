"""Where batches run: threads, processes, Dask or Ray; how the limits are shared out, and how processes are stopped."""

import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
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
from malt.spec import Limits, RunSpec

B = TypeVar("B")
G = TypeVar("G")

THREADS = 4
"""Batches under way at once in one process; each holds many requests, so few are enough."""


@dataclass(frozen=True)
class Crew:
    """Threads or processes that work on a run's batches, each batch within a share of its limits."""

    runner: TaskRunner[Any]
    shares: Sequence[Limits]
    """One for each batch that may be under way: however many processes join a cluster, the rest idle."""
    stop: Callable[[], None]
    """Let what the run asks from other processes arrive, write it, and ask no more; may be called again."""

    def work(
        self, batches: Iterable[B], submit: Callable[[B, Limits], PrefectFuture[G]], count: Callable[[G], None]
    ) -> list[G]:
        """Return what comes of each batch, in order; once a signal came or one has failed, no more is begun."""
        ended, one_at_a_time = threading.Event(), threading.Lock()
        free = list(self.shares)

        def stop() -> None:
            ended.set()
            self.stop()

        def work_on(batch: B) -> list[G]:
            if ended.is_set():
                return []
            try:
                with one_at_a_time:
                    share = free.pop()
                    future = submit(batch, share)
                grown = future.result()
            except BaseException:
                ended.set()
                raise
            with one_at_a_time:
                free.append(share)
                count(grown)
            return [grown]

        with self.runner, stopped_by(stop), ThreadPoolExecutor(len(self.shares)) as hands:
            try:
                done = [hands.submit(copy_context().run, work_on, batch) for batch in batches]
                return [grown for each in done for grown in each.result()]
            finally:
                stop()


def crew_of(spec: RunSpec, settings: Settings, run: str) -> Crew:
    """Return who works on a run, as `run.task_runner` names them. Raises `ConfigError` where they cannot.

    There are never more processes than shares that are of any use.
    """
    processes = min(os.cpu_count() or 1, spec.limits.most_shares)
    match spec.run.task_runner:
        case "threads":
            return Crew(ThreadPoolTaskRunner(max_workers=THREADS), (spec.limits,) * THREADS, nothing)
        case "processes":
            pool = ProcessPoolTaskRunner(max_workers=processes, initializer=begin_worker)
            return Crew(pool, spec.limits.shares(processes), stop_children)
        case "ray":
            return Crew(*imported("flows.on_ray", "ray").cluster(processes, spec, settings))
        case "dask":
            return Crew(*imported("flows.on_dask", "dask").own_cluster(processes, spec, run))
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
