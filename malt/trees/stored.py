"""Trees out of the store alone: grown, graded and valued again, a window of questions at a time, in order.

Many windows are assessed in the pool's processes, ahead of whoever takes the trees.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from malt.concurrency import in_turn
from malt.llm.asker import recall
from malt.llm.completion import Complete, Completion, CompletionRequest
from malt.llm.history import StoreThen
from malt.llm.store import Store
from malt.prompts import PromptSet
from malt.questions import Question
from malt.spec import Role, RunSpec
from malt.trees.assessment import assess
from malt.trees.credit import ValuedTree
from malt.trees.pool import CallFailed, submit

AHEAD = 2
"""Windows assessed while another is taken; each more is held in memory."""
MANY = 3
"""Windows from which on processes are worth their start."""
WINDOW_LIMIT_S = 600.0
"""Seconds one window may take in a process; as a rule it is less than one."""
SELDOM = 1_000_000
"""Objects made, less those let go, between two searches for cycles."""

Window = Sequence[Question]


class Source(NamedTuple):
    """What trees are grown from again, beside the questions."""

    spec: RunSpec
    prompts: PromptSet
    store_url: str
    moment: datetime | None = None
    """As of which the store is read; None: as it is now."""
    patience_s: float = 0.0
    """How long the store is waited for."""

    @property
    def takes_processes(self) -> bool:
        """Whether graders use the pool's processes themselves."""
        return not {"math", "python"}.isdisjoint(self.spec.evaluator.kind)

    def open_store(self) -> Store:
        """Open the store. Raises `StoreError`."""
        if self.moment is not None:
            return StoreThen(self.store_url, self.moment)
        return Store(self.store_url, self.patience_s)


class Assessed(NamedTuple):
    """A question's tree, and what the judge said of it: each completion once, though equal answers share one."""

    valued: ValuedTree
    judged: tuple[Completion, ...]


def assess_windows(windows: Sequence[Window], source: Source) -> Iterator[Assessed]:
    """Yield every question's tree; what the store lacks is a failed branch."""
    if len(windows) < MANY or source.takes_processes:
        return chain.from_iterable(assess_window(window, source) for window in windows)
    return chain.from_iterable(assessed_ahead(windows, source))


def assessed_ahead(windows: Iterable[Window], source: Source) -> Iterator[list[Assessed]]:
    """Yield windows that were assessed in other processes; one that fails there is done here, where its error shows."""
    waiting = deque[tuple[Window, Future[list[Assessed]]]]()
    for window in windows:
        waiting.append((window, submit(assess_window, window, source, timeout_s=WINDOW_LIMIT_S)))
        if len(waiting) > AHEAD:
            yield taken(*waiting.popleft(), source)
    for left in waiting:
        yield taken(*left, source)


def taken(window: Window, future: Future[list[Assessed]], source: Source) -> list[Assessed]:
    """Wait for a window."""
    try:
        return future.result()
    except CallFailed:
        return assess_window(window, source)


def assess_window(window: Window, source: Source) -> list[Assessed]:
    """Assess some questions."""
    with source.open_store() as store:
        stored = recall(store, [question.question_id for question in window])

    async def assessed(question: Question) -> Assessed:
        noting = JudgeNoted(stored)
        valued = await assess(question, source.spec, source.prompts, noting, wait=in_turn)
        return Assessed(valued, tuple(noting.judged[key] for key in sorted(noting.judged)))

    async def all_assessed() -> list[Assessed]:
        return await asyncio.gather(*(assessed(question) for question in window))

    with collecting_seldom():
        return asyncio.run(all_assessed())


class JudgeNoted:
    """A `Complete` that keeps the judge's completions by key."""

    def __init__(self, complete: Complete) -> None:
        self.complete = complete
        self.judged: dict[str, Completion] = {}

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the samples, and note them where they are the judge's."""
        completions = await self.complete(request)
        if request.role is Role.EVALUATOR:
            self.judged.update((completion.key, completion) for completion in completions)
        return completions


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Look for cycles seldom: trees and rows have none, and every search walks through all those at hand."""
    usual = gc.get_threshold()
    gc.set_threshold(SELDOM, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
