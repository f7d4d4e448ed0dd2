"""Batch mode: sends the missing samples of all trees to the providers' batch APIs, one tree level at a time.

Each round replays the trees from the store; the samples that they lack are the next level. Batches at a provider are
recorded in the store too, so that the next run resumes a run that ended in any way.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from malt.concurrency import run_to_end
from malt.config.roles import Role
from malt.engine.job import Job
from malt.engine.run import Filled, Run, most_for_tree, session_of
from malt.errors import BudgetSpent, RunStopped
from malt.llm.batch.api import BatchClient, RemoteBatch
from malt.llm.batch.results import QUEUE_FULL, BatchOutcome
from malt.llm.batch.submit import BatchCollector, BatchSize, BatchSubmitter, Queues
from malt.llm.budget import NOTHING, Amount, Tally, Usage
from malt.llm.client.session import STOP_SECONDS, Session
from malt.llm.provider.errors import name_endpoint
from malt.llm.provider.routing import find_route
from malt.llm.rate_limit.policy import PATIENT, Policy
from malt.llm.store.batches import Batch, name_process, submitting
from malt.llm.store.samples import split_chunks
from malt.questions.question import Question
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, ask_all
from malt.trees.replay import MissingQuestions, windows
from malt.trees.tree import FailedBranch

_DAILY_SIZE = BatchSize()


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Sizes, retries and polling intervals of batches; tests use shorter ones."""

    size: BatchSize = _DAILY_SIZE
    attempts: int = 5
    """Batches in which a sample may fail before it is given up, as many as the attempts of a direct request."""
    first_look_s: float = 0.5
    backoff: float = 1.5
    """Factor between two polling intervals."""
    longest_s: float = 300.0
    full_for_s: float = 86_400.0
    """Seconds that a provider's queue may be full: batches end within a day."""
    patience: Policy = PATIENT
    """Retry policy of failing API calls."""


_DAILY = Rhythm()


class Waiting(RunStopped):
    """Raised if batches are in flight and the config says not to wait (`run.wait = false`)."""


async def ask_in_batches(job: Job, missing: MissingQuestions, run: Run, rhythm: Rhythm = _DAILY) -> Filled:
    """Ask for all samples of these questions, level by level, into the store; an `Ask` of `fill`."""
    session = session_of(job, run)

    def find() -> list[Question]:
        found = {question.question_id for question in missing}
        return [question for question in job.questions if question.question_id in found]

    questions = await run_to_end(find, missing.stop, STOP_SECONDS)
    batched = _BatchedRun(job, session, run, rhythm)
    shortfall = await session.call(batched.ask_all(questions))
    return Filled(shortfall, Tally(batched.tally.roles))


@dataclass
class Level:
    """Samples that one round found missing or failed."""

    failures: list[FailedBranch]
    stored: Counter[Role]
    waits_for: set[str]
    wanted: int = 0
    short: Amount | None = None
    """Worst-case usage of the first request that the budget had no room for."""

    @property
    def is_last(self) -> bool:
        """Whether no sample is left to ask or to wait for."""
        return not (self.wanted or self.waits_for)


class _BatchedRun:
    """One run in batch mode. Call its methods on the session's loop only."""

    def __init__(self, job: Job, session: Session, run: Run, rhythm: Rhythm) -> None:
        self.job, self.spec, self.prompts, self.session = job, job.spec, job.prompts, session
        self.run, self.asks = run.name, run.roles
        self.tally = Tally(above=session.tally, run=run.name)
        self._rhythm = rhythm
        self._pause_s = rhythm.first_look_s
        self._queues = Queues(rhythm.size)
        self._batch_store = session.batch_store
        self._failed: set[str] = set()
        self._remotes: dict[str, RemoteBatch] = {}

    async def ask_all(self, questions: Sequence[Question]) -> Shortfall:
        failures: list[FailedBranch] = []
        await self._count_earlier_spending()
        try:
            for group in self._group_questions(questions):
                failures += await self._grow(group)
        except Waiting as waiting:
            return Shortfall((), None, str(waiting))
        except RunStopped as stop:
            if isinstance(stop, BudgetSpent):
                await asyncio.to_thread(self._batch_store.close, self.spec.name)
            return Shortfall(tuple(failures), str(stop))
        await asyncio.to_thread(self._batch_store.close, self.spec.name)
        return NOTHING_MISSING._replace(failures=tuple(failures))

    async def _count_earlier_spending(self) -> None:
        """Count the spending of this dataset's unfinished earlier runs, and reserve the cost of its open batches."""
        for ended in await asyncio.to_thread(self._batch_store.list_ended, self.spec.name):
            if ended.mark != self.session.session_id:
                self.session.budget.settle_reserved(ended.mark, ended.amount)
        await self._list_open()

    def _group_questions(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        """Yield groups of questions to grow together: under a cap as many as fit, but at least one."""
        left = questions
        while left:
            taken = self._count_fitting(left) if self.spec.limits.capped else len(left)
            yield left[:taken]
            left = left[taken:]

    def _count_fitting(self, questions: Sequence[Question]) -> int:
        room = self.session.budget.room
        for count, question in enumerate(questions):
            most = most_for_tree(question, self.spec, self.prompts)
            room = Amount(room.usd - most.usd, room.tokens - most.tokens)
            if min(room) < 0:
                return max(1, count)
        return len(questions)

    async def _grow(self, questions: Sequence[Question]) -> list[FailedBranch]:
        """Ask level after level; return the failed branches."""
        while True:
            level = await self._next_level(questions)
            if level.is_last:
                for role, stored in level.stored.items():
                    self.tally.add(role, Usage(cached_completions=stored))
                return level.failures
            if level.short is not None and not await self._list_open(level.waits_for):
                self._raise_if_spent(level.short)
            await self._wait(level)
            self.session.batches = ""

    async def _next_level(self, questions: Sequence[Question]) -> Level:
        level = Level([], Counter(), set())
        patience = self._rhythm.patience
        packer = BatchSubmitter(self.session, self._batch_store, self.spec.name, self.tally, self._queues, patience)
        with closing(packer):
            for window in windows(questions):
                self.session.raise_if_stopped()
                collector = await self._collect_missing(window, level)
                for wanted in collector.wanted.values():
                    await packer.add(wanted)
            await packer.finish()
        level.wanted += packer.wanted
        level.short = level.short or packer.short
        return level

    async def _collect_missing(self, window: Sequence[Question], level: Level) -> BatchCollector:
        ids = [question.question_id for question in window]
        # items before rows: an answer that arrives meanwhile would else be in neither
        items = await asyncio.to_thread(self._batch_store.find_items, ids, self.spec.name)
        known = await asyncio.to_thread(self.session.store.rows, ids)
        collector = BatchCollector(self.session, known, items, self._failed, self.asks, self.tally)
        try:
            shortfall = await ask_all(window, self.job.inputs(collector))
        finally:
            await self._note_spent()
        if shortfall.stopped is not None:
            raise self.session.stopped or RunStopped(shortfall.stopped)
        level.failures += shortfall.failures
        level.stored += collector.stored
        level.waits_for |= collector.waits_for
        level.wanted += collector.put_off
        level.short = level.short or collector.short
        return collector

    async def _note_spent(self) -> None:
        """Record the cost of direct requests in the store, so that the next run counts it."""
        if (spent := self.session.budget.spent_unreserved) != NOTHING:
            noted = Batch(self.session.session_id, self.spec.name, "asked directly", None, None, *spent, name_process())
            await asyncio.to_thread(self._batch_store.note_spent, noted)

    async def _list_open(self, marks: Collection[str] = ()) -> list[Batch]:
        """Return the open batches of this dataset, and others by their marks; reserve their cost in the budget."""
        batches = await asyncio.to_thread(self._batch_store.list_open, self.spec.name, marks)
        for batch in batches:
            self.session.budget.reserve(batch.mark, batch.amount)
        await self._settle_collected({batch.mark for batch in batches})
        self._queues.note_open(batches)
        return batches

    async def _settle_collected(self, still_open: Collection[str]) -> None:
        """Settle reservations of batches that other processes collected; an unknown cost counts as the worst case."""
        held = {mark: most for mark, most in self.session.budget.reserved.items() if mark not in still_open}
        known = await asyncio.to_thread(self._batch_store.find_by_mark, held)
        for mark, most in held.items():
            batch = known.get(mark)
            if mark not in submitting and (batch is None or batch.ended_at is not None):
                self.session.budget.settle_reserved(mark, most if batch is None else batch.amount)

    def _raise_if_spent(self, short: Amount) -> None:
        if not self.session.budget.has_room_for(short):
            raise self.session.budget.refusal(short)

    async def _wait(self, level: Level) -> None:
        """Collect batches until none is open; without `run.wait`, collect those that have ended, or raise `Waiting`."""
        collected = 0
        while batches := await self._list_open(level.waits_for):
            if self.spec.run.wait:
                await asyncio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * self._rhythm.backoff, self._rhythm.longest_s)
            for batch in batches:
                collected += await self._poll(batch)
            self._show_progress(batches)
            if not self.spec.run.wait:
                if collected:
                    return
                raise Waiting(f"{self.session.batches}; run the same command again to go on")

    async def _poll(self, batch: Batch) -> bool:
        """Check a batch, and collect it if it has ended; return whether it is closed."""
        self.session.raise_if_stopped()
        client = BatchClient(batch.asked, self._rhythm.patience, self.session.raise_if_stopped)
        if not batch.batch_id:
            return batch.is_abandoned and await self._resolve_abandoned(batch.mark, client)
        remote = self._remotes[batch.mark] = await client.look(batch)
        if remote.has_ended:
            await self._collect(batch, remote, client)
        return remote.has_ended

    async def _resolve_abandoned(self, mark: str, client: BatchClient) -> bool:
        """Find a batch at the provider whose process ended while it submitted it; else release it, and return True."""
        # read again: its process may have submitted it since it was listed, and ended only then
        batch = (await asyncio.to_thread(self._batch_store.find_by_mark, [mark])).get(mark)
        if batch is None or batch.ended_at is not None or batch.batch_id or not batch.is_abandoned:
            return False
        remote = await client.find(batch.mark, batch.planned_at) if batch.is_in_doubt else None
        if remote is None:
            await asyncio.to_thread(self._batch_store.release, batch.mark)
            self.session.budget.settle_reserved(batch.mark, NOTHING)
        else:
            await asyncio.to_thread(self._batch_store.note_batch_id, batch.mark, remote.batch_id)
        return remote is None

    async def _collect(self, batch: Batch, remote: RemoteBatch, client: BatchClient) -> None:
        """Store the answers of a batch, then close it and record which samples are to be asked for again."""
        outcome = BatchOutcome(batch, remote, await find_route(batch.asked), self.run, self._rhythm.attempts)
        items = await asyncio.to_thread(self._batch_store.read_items, batch.mark)
        await asyncio.to_thread(outcome.read, items, await client.results(remote))
        for rows in split_chunks(outcome.rows):
            outcome.count(await asyncio.to_thread(self.session.store.write, rows), self.tally)
        await asyncio.to_thread(self._batch_store.settle, batch.mark, outcome.taken, outcome.answered, outcome.returned)
        self.session.budget.settle_reserved(batch.mark, outcome.taken)
        for role, usage in outcome.wasted:
            self.tally.add(role, usage)
        if not outcome.has_siblings:
            self.session.endpoint(batch.asked).siblings = False
        self._note_queue(batch, remote, len({item.custom_id for item in items}))
        if outcome.ends_run is not None:
            raise outcome.ends_run

    def _note_queue(self, batch: Batch, remote: RemoteBatch, items: int) -> None:
        """Adapt to the room in the provider's queue. Raises `RunStopped` if it has been full for too long."""
        if remote.error_code != QUEUE_FULL:
            self._pause_s = self._rhythm.first_look_s
            self._queues.took(batch.asked, items)
            return
        place = name_endpoint(batch.asked)
        full = f"the provider's queue is full ({QUEUE_FULL}): {place} takes no batch of {items:,} items"
        may_fit = self._queues.refused(batch.asked, items)
        full_for_s = self._queues.full_for_s(batch.asked)
        if full_for_s > self._rhythm.full_for_s:
            raise RunStopped(f"{full}, nor any other for {full_for_s / 3600:.0f} h; run again later")
        if not (may_fit or self.spec.run.wait):
            raise Waiting(f"{full}; run the same command again to go on")

    def _show_progress(self, batches: Sequence[Batch]) -> None:
        """Set the state of the batches for the progress line."""
        remotes = [self._remotes[batch.mark] for batch in batches if batch.mark in self._remotes]
        under_way = len(batches) - sum(remote.has_ended for remote in remotes)
        since = timedelta(seconds=round(time.time() - batches[0].planned_at))
        self.session.batches = (
            f"{under_way} of {len(batches)} batches under way for {since}, {_describe_items(remotes)}"
        )


def _describe_items(remotes: Sequence[RemoteBatch]) -> str:
    completed, failed, total = (
        sum(getattr(remote, name) for remote in remotes) for name in ("completed", "failed", "total")
    )
    return f"{completed:,} of {total:,} items answered, {failed:,} failed" if total else "no item begun yet"
