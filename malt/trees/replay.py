"""Trees out of the store alone: grown, graded and valued again, some questions at a time.

What is made of many questions is made in the pool's processes, ahead of whoever takes it, in order.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from malt.concurrency import gather_in_turn
from malt.config.spec import Role, RunSpec
from malt.grading.process_pool import CallFailed, submit
from malt.llm.client.completers import make_store_completer
from malt.llm.request import Complete, Completion, CompletionRequest
from malt.llm.store.samples import PastStore, Store
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.pipeline import assess

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 2
"""Items under way while another is taken; each more is held in memory."""
MANY = 20
"""Items from which on processes are worth their start."""
ITEM_LIMIT_S = 600.0
"""Seconds one item may take in a process; as a rule it is less than one."""
SELDOM = 1_000_000
"""Objects made, less those let go, between two searches for cycles."""

WINDOW = 200
"""Questions whose trees are held in memory at once."""

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
            return PastStore(self.store_url, self.moment)
        return Store(self.store_url, self.patience_s)


class Assessed(NamedTuple):
    """A question's tree, and what the judge said of it: each completion once, though equal answers share one."""

    valued: ValuedTree
    judged: tuple[Completion, ...]


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Look for cycles seldom: trees and rows have none, and every search walks through all those at hand."""
    usual = gc.get_threshold()
    gc.set_threshold(SELDOM, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def made_of_each(
    make: Callable[[Item, Source], Made], items: Iterable[Item], source: Source, *, grades: bool = True
) -> Iterator[Made]:
    """Yield what is made of every item, in order: of many, in other processes, unless it `grades` with those itself."""
    left = iter(items)
    first = list(islice(left, MANY))
    if len(first) < MANY or (grades and source.takes_processes):
        return (make(item, source) for item in chain(first, left))
    return made_ahead(make, chain(first, left), source)


def made_ahead(make: Callable[[Item, Source], Made], items: Iterable[Item], source: Source) -> Iterator[Made]:
    """Yield what other processes make; an item on which one fails is made here, where its error shows."""
    waiting = deque[tuple[Item, Future[Made]]]()

    def taken() -> Made:
        item, future = waiting.popleft()
        try:
            return future.result()
        except CallFailed:
            return make(item, source)

    for item in items:
        waiting.append((item, submit(make, item, source, timeout_s=ITEM_LIMIT_S)))
        if len(waiting) > AHEAD:
            yield taken()
    while waiting:
        yield taken()


@collecting_seldom()
def assess_window(window: Window, source: Source) -> list[Assessed]:
    """Assess some questions."""
    with source.open_store() as store:
        stored = make_store_completer(store, [question.question_id for question in window])

    async def assessed(question: Question) -> Assessed:
        noting = JudgeNoted(stored)
        valued = await assess(question, source.spec, source.prompts, noting, wait=gather_in_turn)
        return Assessed(valued, tuple(noting.judged[key] for key in sorted(noting.judged)))

    async def all_assessed() -> list[Assessed]:
        return await asyncio.gather(*(assessed(question) for question in window))

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


def windows(questions: Sequence[Question], size: int = WINDOW) -> Iterator[Window]:
    """Cut the questions into what is held in memory at once."""
    return (questions[start : start + size] for start in range(0, len(questions), size))
