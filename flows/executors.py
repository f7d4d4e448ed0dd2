"""Executors that run batches of questions in threads, processes, Dask or Ray, within shares of the run's limits."""

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
"""Most batches in flight in one process if each batch is a single question."""

WORKER_DIED = (
    "a worker process died while it grew trees: killed, or out of memory. What was paid for is in the store: run again"
)


async def ask_in_shards(job: Job, missing: MissingQuestions, run: Run, most: int = BATCH) -> Filled:
    """Run `grow_batch` over batches of questions, on one machine or many; an `Ask` of the engine."""
    is_one_process = job.spec.run.task_runner == "threads"
    at_once = max(AT_ONCE, min(BATCHES_AT_ONCE, AT_ONCE * BATCH // most))
    executor = await asyncio.to_thread(open_executor, job.spec, job.settings, run.name, at_once)
    size = min(most, ceil(len(job.questions) / (1 if is_one_process else len(executor.shares))))
    numbers = count(1)

    def submit(batch: Sequence[Question], share: Limits) -> PrefectFuture[Filled]:
        part = replace(job.only(batch), spec=job.spec.model_copy(update={"limits": share}))
        label = name_batch(batch, next(numbers))
        future: PrefectFuture[Filled] = executor.runner.submit(grow_batch, {"job": part, "run": run, "label": label})
        return future

    def add(part: Filled) -> None:
        if not is_one_process:  # threads update the run's tally themselves
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
    """Return the name of a batch's task run."""
    return f"grow {batch[0].question_id}" if len(batch) == 1 else f"grow batch {number}: {len(batch)} questions"


@dataclass
class Executor:
    """A task runner whose batches each run within a share of the run's limits."""

    runner: TaskRunner[Any]
    shares: Sequence[Limits]
    """Shares of the limits, one for each batch in flight; further processes of a cluster stay idle."""
    stop_workers: Callable[[], None]
    """Store the answers of requests in flight, and send no more; idempotent."""
    death_errors: tuple[type[Exception], ...] = ()
    """Exceptions that the runner raises if a process was killed."""
    _has_started: bool = field(default=False, init=False)
    _is_stopped: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def map(
        self, batches: Iterable[B], submit: Callable[[B, Limits], PrefectFuture[R]], count: Callable[[R], None]
    ) -> list[R]:
        """Return the result of each batch, in order; a batch starts as soon as a share of the limits is free.

        After `stop` or a failure no further batch starts. Raises `WorkerDied` if a process was killed, after the others
        have stored their last answers.
        """
        free_shares = list(self.shares)

        def run_batch(batch: B) -> list[R]:
            with self._stop_on_failure():
                with self._lock:
                    if self._is_stopped:
                        return []
                    self._has_started = True
                    share = free_shares.pop()
                    future = submit(batch, share)
                result = take_result(future)
            with self._lock:
                free_shares.append(share)
                count(result)
            return [result]

        with self.runner, ThreadPoolExecutor(len(self.shares)) as waiters:
            try:
                until_stop = takewhile(lambda _: not self._is_stopped, batches)
                futures = [waiters.submit(copy_context().run, run_batch, batch) for batch in until_stop]
                return [result for future in futures for result in future.result()]
            finally:
                self.stop()

    def stop(self) -> None:
        """Start no more batches, and let those in flight end with the answers that they have."""
        with self._lock:
            self._is_stopped = True
        if self._has_started:
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
    """Wait for a task run and return its result in any state, also `Failed`; raise its error if that is the result."""
    result: Any = future.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return cast("R", result)


def open_executor(spec: RunSpec, settings: Settings, run: str, at_once: int = AT_ONCE) -> Executor:
    """Return the executor that `run.task_runner` names. Raises `ConfigError` if it is not available.

    Never uses more processes than the limits can be divided among.
    """
    executor: Executor
    processes = min(os.cpu_count() or 1, spec.limits.most_shares)
    match spec.run.task_runner:
        case "threads":
            return Executor(
                ThreadPoolTaskRunner(max_workers=at_once), (spec.limits,) * at_once, partial(stop_sessions, run)
            )
        case "processes":
            child_end, our_end = Pipe(duplex=False)
            pool = _QuietProcesses(max_workers=processes, initializer=begin_worker, initargs=(child_end,))
            return Executor(pool, spec.limits.shares(processes), our_end.close, (BrokenProcessPool,))
        case "ray":
            executor = _import_extra("flows.ray_executor", "ray").open_cluster(processes, spec, settings)
        case "dask":
            executor = _import_extra("flows.dask_executor", "dask").start_cluster(processes, spec, run)
        case address:
            executor = _import_extra("flows.dask_executor", "dask").join_cluster(address, spec, settings, run)
    return executor


class _QuietProcesses(ProcessPoolTaskRunner):
    """Processes that ignore Ctrl-C while they start: it would print a traceback and break the whole pool."""

    def submit(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - the parent's signature
        """Submit a task; the first one starts the processes."""
        with hold_terminal_back():
            return super().submit(*arguments, **keywords)


def _import_extra(module: str, extra: str) -> Any:  # noqa: ANN401 - one of our modules that needs an extra
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"run.task_runner on {extra.capitalize()} needs the package {error.name!r}: install malt-trees[{extra}]"
        ) from error
