"""Where batches of questions run: threads, processes, Dask or Ray; how limits are shared out, and how workers stop."""

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
from itertools import chain, count, takewhile
from math import ceil
from multiprocessing import Pipe
from typing import Any, TypeVar, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from malt.concurrency import run_to_end
from malt.config.limits import Limits
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.fill import AT_ONCE, BATCH
from malt.engine.job import Job
from malt.engine.run import Filled, Run, merge
from malt.engine.signals import begin_worker, hold_terminal_back
from malt.errors import ConfigError, WorkerDied
from malt.llm.client.session import STOP_SECONDS, stop_sessions
from malt.questions.question import Question
from malt.trees.replay import MissingQuestions
from tasks.growing import grow_batch

B = TypeVar("B")
R = TypeVar("R")

BATCHES_AT_ONCE = 32
"""In one process, where a batch is a question."""

WORKER_DIED = (
    "a worker process died while it grew trees: killed, or out of memory. What was paid for is in the store: run again"
)


async def ask_in_shards(job: Job, missing: MissingQuestions, run: Run, most: int = BATCH) -> Filled:
    """Run `grow_batch` over batches of questions, on one machine or many; an `Ask` of the engine."""
    is_here = job.spec.run.task_runner == "threads"
    at_once = max(AT_ONCE, min(BATCHES_AT_ONCE, AT_ONCE * BATCH // most))
    executor = await asyncio.to_thread(open_executor, job.spec, job.settings, run.name, at_once)
    size = min(most, ceil(len(job.questions) / (1 if is_here else len(executor.shares))))
    numbers = count(1)

    def submit(batch: Sequence[Question], share: Limits) -> PrefectFuture[Filled]:
        part = replace(job.only(batch), spec=job.spec.model_copy(update={"limits": share}))
        label = name_batch(batch, next(numbers))
        future: PrefectFuture[Filled] = executor.runner.submit(grow_batch, {"job": part, "run": run, "label": label})
        return future

    def add(part: Filled) -> None:
        if not is_here:  # threads count as they go
            run.tally.merge(part.tally)

    def work() -> list[Filled]:
        batches = missing.batches(size)
        first = next(batches, None)
        return [] if first is None else executor.map(chain([first], batches), submit, add)

    def stop() -> None:
        missing.stop()
        executor.stop()

    return merge(await run_to_end(work, stop, STOP_SECONDS + 1))


def name_batch(batch: Sequence[Question], number: int) -> str:
    """Say in a few words what a task run grows."""
    return f"grow {batch[0].question_id}" if len(batch) == 1 else f"grow batch {number}: {len(batch)} questions"


@dataclass
class Executor:
    """A task runner whose batches each run within a share of the run's limits."""

    runner: TaskRunner[Any]
    shares: Sequence[Limits]
    """One for each batch in flight: however many processes join a cluster, the rest idle."""
    stop_workers: Callable[[], None]
    """Let requests in flight arrive, store them, and ask no more; idempotent."""
    death_errors: tuple[type[Exception], ...] = ()
    """What the runner raises where a process was killed."""
    _is_begun: bool = field(default=False, init=False)
    _is_stopped: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def map(
        self, batches: Iterable[B], submit: Callable[[B, Limits], PrefectFuture[R]], count: Callable[[R], None]
    ) -> list[R]:
        """Return what comes of each batch, in order; `batches` are taken as shares of the limits get free.

        Once `stop` was called or one has failed, no more is begun. Raises `WorkerDied` where a process was killed, once
        the others have stored what they still got.
        """
        free = list(self.shares)

        def run_batch(batch: B) -> list[R]:
            with self._stop_on_failure():
                with self._lock:
                    if self._is_stopped:
                        return []
                    self._is_begun = True
                    share = free.pop()
                    future = submit(batch, share)
                result = take_result(future)
            with self._lock:
                free.append(share)
                count(result)
            return [result]

        with self.runner, ThreadPoolExecutor(len(self.shares)) as waiters:
            try:
                begun = takewhile(lambda _: not self._is_stopped, batches)
                done = [waiters.submit(copy_context().run, run_batch, batch) for batch in begun]
                return [result for each in done for result in each.result()]
            finally:
                self.stop()

    def stop(self) -> None:
        """Begin no more batches, and let those in flight end with what they have."""
        with self._lock:
            self._is_stopped = True
        if self._is_begun:
            self.stop_workers()

    @contextmanager
    def _stop_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with self._lock:
                self._is_stopped = True
            if isinstance(error, self.death_errors):
                raise WorkerDied(WORKER_DIED) from error
            raise


def take_result(future: PrefectFuture[R]) -> R:
    """Wait for a task run, and return what it came to, whatever its state says of that; raise its error."""
    result: Any = future.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return cast("R", result)


def open_executor(spec: RunSpec, settings: Settings, run: str, at_once: int = AT_ONCE) -> Executor:
    """Return the executor that `run.task_runner` names. Raises `ConfigError` where it cannot be had.

    There are never more processes than shares of the limits that are of any use.
    """
    processes = min(os.cpu_count() or 1, spec.limits.most_shares)
    match spec.run.task_runner:
        case "threads":
            return Executor(
                ThreadPoolTaskRunner(max_workers=at_once), (spec.limits,) * at_once, partial(stop_sessions, run)
            )
        case "processes":
            theirs, ours = Pipe(duplex=False)
            pool = _QuietProcesses(max_workers=processes, initializer=begin_worker, initargs=(theirs,))
            return Executor(pool, spec.limits.shares(processes), ours.close, (BrokenProcessPool,))
        case "ray":
            named = _import_extra("flows.ray_executor", "ray").open_cluster(processes, spec, settings)
        case "dask":
            named = _import_extra("flows.dask_executor", "dask").start_cluster(processes, spec, run)
        case address:
            named = _import_extra("flows.dask_executor", "dask").join_cluster(address, spec, settings, run)
    executor: Executor = named
    return executor


class _QuietProcesses(ProcessPoolTaskRunner):
    """Processes that a Ctrl-C does not end while they start: Python would print where, and all others would end."""

    def submit(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - its parent's
        """Submit a task; the first one starts the processes."""
        with hold_terminal_back():
            return super().submit(*arguments, **named)


def _import_extra(module: str, extra: str) -> Any:  # noqa: ANN401 - a module of ours, which needs an extra
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"run.task_runner on {extra.capitalize()} needs the package {missing.name!r}: install malt-trees[{extra}]"
        ) from missing
