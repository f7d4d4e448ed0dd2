"""Where batches run: threads, processes, Dask or Ray; how the limits are shared out, and how processes are stopped."""

import asyncio
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, takewhile
from math import ceil
from multiprocessing import Pipe
from types import ModuleType
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from malt.concurrency import to_its_end
from malt.config.settings import Settings
from malt.config.spec import Limits, RunSpec
from malt.engine.fill import BATCH
from malt.engine.job import Job
from malt.engine.run import Filled, Run, merge
from malt.engine.signals import begin_worker
from malt.errors import ConfigError, WorkerDied
from malt.llm.client.session import STOP_SECONDS, stop_sessions
from malt.questions.question import Question
from malt.trees.replay import MissingQuestions
from tasks.growing import grow_batch

B = TypeVar("B")
G = TypeVar("G")

THREADS = 4
"""Batches under way at once in one process; each holds many requests, so few are enough."""
DIED = (
    "a worker process died while it grew trees: killed, or out of memory. What was paid for is in the store: run again"
)


@dataclass
class Crew:
    """Threads or processes that work on a run's batches, each batch within a share of its limits."""

    runner: TaskRunner[Any]
    shares: Sequence[Limits]
    """One for each batch that may be under way: however many processes join a cluster, the rest idle."""
    dismiss: Callable[[], None]
    """Let what the run asks from other processes arrive, write it, and ask no more; may be called again."""
    deaths: tuple[type[Exception], ...] = ()
    """How the runner says that a process was killed."""
    _began: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, init=False)

    def work(
        self, batches: Iterable[B], submit: Callable[[B, Limits], PrefectFuture[G]], count: Callable[[G], None]
    ) -> list[G]:
        """Return what comes of each batch, in order.

        Once `stop` was called or one has failed, no more is begun, or taken from `batches`. Raises `WorkerDied` where a
        process was killed, once the others have written what they still got.
        """
        free = list(self.shares)

        def work_on(batch: B) -> list[G]:
            with self._ended_by_failure():
                with self._one_at_a_time:
                    if self._ended:
                        return []
                    self._began = True
                    share = free.pop()
                    future = submit(batch, share)
                grown = future.result()
            with self._one_at_a_time:
                free.append(share)
                count(grown)
            return [grown]

        with self.runner, ThreadPoolExecutor(len(self.shares)) as hands:
            try:
                begun = takewhile(lambda _: not self._ended, batches)
                done = [hands.submit(copy_context().run, work_on, batch) for batch in begun]
                return [grown for each in done for grown in each.result()]
            finally:
                self.stop()

    def stop(self) -> None:
        """Begin no more batches, and let those under way end with what they have."""
        with self._one_at_a_time:
            self._ended = True
        if self._began:
            self.dismiss()

    @contextmanager
    def _ended_by_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with self._one_at_a_time:
                self._ended = True
            if isinstance(error, self.deaths):
                raise WorkerDied(DIED) from error
            raise


async def ask_in_shards(job: Job, missing: MissingQuestions, run: Run) -> Filled:
    """Run `grow_batch` over batches of questions, on one machine or many; an `Ask` of the engine."""
    spec, is_here = job.spec, job.spec.run.task_runner == "threads"
    crew = await asyncio.to_thread(crew_of, spec, job.settings, run.name)
    size = min(BATCH, ceil(len(job.questions) / (1 if is_here else len(crew.shares))))

    def submit(batch: Sequence[Question], share: Limits) -> PrefectFuture[Filled]:
        part = replace(job.only(batch), spec=spec.model_copy(update={"limits": share}))
        future: PrefectFuture[Filled] = crew.runner.submit(grow_batch, {"job": part, "run": run})
        return future

    def count(part: Filled) -> None:
        if not is_here:
            run.tally.merge(part.tally)

    def work() -> list[Filled]:
        batches = missing.batches(size)
        first = next(batches, None)
        return [] if first is None else crew.work(chain([first], batches), submit, count)

    def stop() -> None:
        missing.stop()
        crew.stop()

    return merge(await to_its_end(work, stop, STOP_SECONDS + 1))


def crew_of(spec: RunSpec, settings: Settings, run: str) -> Crew:
    """Return who works on a run, as `run.task_runner` names them. Raises `ConfigError` where they cannot.

    There are never more processes than shares that are of any use.
    """
    processes = min(os.cpu_count() or 1, spec.limits.most_shares)
    match spec.run.task_runner:
        case "threads":
            threads = (spec.limits,) * THREADS
            return Crew(ThreadPoolTaskRunner(max_workers=THREADS), threads, partial(stop_sessions, run))
        case "processes":
            theirs, ours = Pipe(duplex=False)
            pool = ProcessPoolTaskRunner(max_workers=processes, initializer=begin_worker, initargs=(theirs,))
            return Crew(pool, spec.limits.shares(processes), ours.close, (BrokenProcessPool,))
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
