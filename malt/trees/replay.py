"""Trees rebuilt from the store alone: a survey of the questions that are incomplete, and the trees of the others.

Many questions are processed in the process pool, in order, a little ahead of the consumer.
"""

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, islice
from threading import Event
from typing import NamedTuple, TypeVar

from malt.concurrency import gather_in_turn
from malt.config.roles import Role
from malt.config.spec import RunSpec
from malt.grading.judge import LLMEvaluator
from malt.grading.process_pool import CallFailed, submit
from malt.llm.budget import Tally, Usage
from malt.llm.client.completers import RecordingCompleter, make_store_completer
from malt.llm.request import Complete, Completion, CompletionRequest
from malt.llm.store.samples import PastStore, Store
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.credit import ValuedTree
from malt.trees.growth import TreeInputs, nodes_per_question
from malt.trees.pipeline import ask_all, asks_judge, assess

Item = TypeVar("Item")
Made = TypeVar("Made")

_AHEAD = 2
"""Items in flight while another is consumed; each of them is held in memory."""
MANY = 20
"""Number of items from which it pays to start processes."""
_ITEM_LIMIT_S = 600.0
"""Time-out of one item in a process; it usually takes less than a second."""
_GC_THRESHOLD = 1_000_000
"""Generation-0 threshold: allocations minus deallocations between two garbage collections."""

WINDOW = 200
"""Questions whose trees are held in memory at once."""
_SURVEY_WINDOW = 50
"""Questions surveyed together."""

Window = Sequence[Question]


class Source(NamedTuple):
    """Source from which trees are replayed: run spec, prompts and store."""

    spec: RunSpec
    prompts: PromptSet
    store_url: str
    moment: datetime | None = None
    """Time as of which the store is read; None means now."""
    patience_s: float = 0.0
    """Seconds to wait for a store that is away."""
    judge: LLMEvaluator | None = None
    """Judge that replaces the one declared in the spec."""

    @property
    def needs_this_process(self) -> bool:
        """Whether grading must run in this process: a grader uses the process pool itself, or `judge` is given."""
        return self.judge is not None or not {"math", "python"}.isdisjoint(self.spec.evaluator.kind)

    def inputs(self, complete: Complete) -> TreeInputs:
        """Return the inputs for growing trees from answers in memory."""
        return TreeInputs(self.spec, self.prompts, complete, self.judge, gather_in_turn)

    def open_store(self) -> Store:
        if self.moment is not None:
            return PastStore(self.store_url, self.moment)
        return Store(self.store_url, self.patience_s)


class Assessed(NamedTuple):
    """A question's tree, and the judge's completions; one that equal answers share is included once."""

    valued: ValuedTree
    judged: tuple[Completion, ...]


@contextmanager
def infrequent_gc() -> Iterator[None]:
    """Raise the generation-0 threshold: trees and rows have no cycles, but each collection would traverse them all."""
    usual = gc.get_threshold()
    gc.set_threshold(_GC_THRESHOLD, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def map_items(
    make: Callable[[Item, Source], Made], items: Iterable[Item], source: Source, *, grades: bool = True
) -> Iterator[Made]:
    """Yield `make(item, source)` in order; many items are made in other processes, unless grading needs this one."""
    left = iter(items)
    first = list(islice(left, MANY))
    if len(first) < MANY or (grades and source.needs_this_process):
        return (make(item, source) for item in chain(first, left))
    return _map_in_processes(make, chain(first, left), source)


def _map_in_processes(make: Callable[[Item, Source], Made], items: Iterable[Item], source: Source) -> Iterator[Made]:
    """Map in the process pool; an item whose call failed is repeated in this process, so that its error is raised."""
    waiting = deque[tuple[Item, Future[Made]]]()

    def next_made() -> Made:
        item, future = waiting.popleft()
        with suppress(CallFailed):
            return future.result()
        return make(item, source)

    for item in items:
        waiting.append((item, submit(make, item, source, timeout_s=_ITEM_LIMIT_S)))
        if len(waiting) > _AHEAD:
            yield next_made()
    while waiting:
        yield next_made()


@infrequent_gc()
def read_trees(window: Window, source: Source) -> list[Assessed]:
    """Replay the trees of some questions; samples that the store lacks are among a tree's failures."""
    with source.open_store() as store:
        stored = make_store_completer(store, [question.question_id for question in window])
    return asyncio.run(_assess_all(window, source, stored))


async def _assess_all(window: Window, source: Source, stored: Complete) -> list[Assessed]:
    return await asyncio.gather(*(assess_noting_judge(question, source, stored) for question in window))


async def assess_noting_judge(question: Question, source: Source, complete: Complete) -> Assessed:
    """Assess one question's tree; return it with the judge's completions."""
    judged: dict[str, Completion] = {}

    async def complete_and_note(request: CompletionRequest) -> Sequence[Completion]:
        completions = await complete(request)
        if request.role is Role.EVALUATOR:
            judged.update((completion.key, completion) for completion in completions)
        return completions

    valued = await assess(question, source.inputs(complete_and_note))
    return Assessed(valued, tuple(judged[key] for key in sorted(judged)))


def windows(questions: Sequence[Question], size: int = WINDOW) -> Iterator[Window]:
    return (questions[start : start + size] for start in range(0, len(questions), size))


class Survey(NamedTuple):
    """Survey of the store for some questions."""

    missing: Sequence[Question]
    """Questions whose trees, or whose grades, are incomplete."""
    stored: Mapping[Role, int]
    """Number of samples in the other questions' trees, by role."""


class MissingQuestions:
    """The questions whose trees are incomplete in the store; the samples of the others are counted on the way."""

    def __init__(self, questions: Sequence[Question], source: Source, above: Tally) -> None:
        self.questions, self.source = questions, source
        self.stored = Tally(above=above)
        """Samples of complete trees among the questions surveyed so far."""
        self._stopped = Event()

    def __iter__(self) -> Iterator[Question]:
        return chain.from_iterable(self._parts())

    def batches(self, size: int) -> Iterator[list[Question]]:
        """Yield them in lists of `size`; the first lists do not wait for the survey of the rest."""
        parts = self._parts()
        return chain(_batch(next(parts), size), _batch(chain.from_iterable(parts), size))

    def stop(self) -> None:
        self._stopped.set()

    def _parts(self) -> Iterator[Sequence[Question]]:
        for part in survey(self.questions, self.source):
            for role, samples in part.stored.items():
                self.stored.add(role, Usage(cached_completions=samples))
            yield part.missing
            if self._stopped.is_set():
                return


def _batch(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    left = iter(questions)
    return iter(lambda: list(islice(left, size)), [])


def survey(questions: Sequence[Question], source: Source) -> Iterator[Survey]:
    """Yield the incomplete questions: at once those with too few rows in the store, then the rest by replaying."""
    with source.open_store() as store:
        rows = store.count(question.question_id for question in questions)
    # with fewer rows no tree is complete
    least = sum(nodes_per_question(source.spec).values()) if source.spec.growth.mode == "full" else 1
    yield Survey([question for question in questions if rows[question.question_id] < least], {})
    begun = [question for question in questions if rows[question.question_id] >= least]
    grades = asks_judge(source.spec) or source.spec.growth.mode == "adaptive"
    yield from map_items(survey_window, windows(begun, _SURVEY_WINDOW), source, grades=grades)


@infrequent_gc()
def survey_window(window: Window, source: Source) -> Survey:
    """Replay some questions' trees, and their judge's grades, as far as the store has them."""
    with source.open_store() as store:
        noted = RecordingCompleter(make_store_completer(store, [question.question_id for question in window]))
    shortfall = asyncio.run(ask_all(window, source.inputs(noted)))
    missing = {branch.question_id for branch in shortfall.failures}
    whole = [request for request in noted.requests if request.question_id not in missing]
    stored = Counter(role for _, role in {(key, request.role) for request in whole for key in request.keys})
    return Survey([question for question in window if question.question_id in missing], stored)
