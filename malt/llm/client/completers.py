"""Completers, which complete a request from the store alone, or from the store with a session behind it.

A fallback's answer has the key that it would have if the fallback were the role's model, so that any config with that
model and the same request reuses it. It stands in for the model's own answer where the store has an error instead of
that one: a rerun reuses the fallback's answer, and requests neither again.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from malt.concurrency import gather_all
from malt.config.roles import Role
from malt.errors import ConfigError, StoreError
from malt.llm.budget import Tally, Usage
from malt.llm.client.session import Session
from malt.llm.request import Complete, Completion, CompletionRequest, RequestFailed
from malt.llm.response import read_response
from malt.llm.store.batches import Batch
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import ASIDE, Store


class StoreCompleter:
    """A `Complete` over the store alone, which grows a question's trees again without requests."""

    def __init__(self, known: dict[str, StoredSample]) -> None:
        self.known = known

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the stored samples. Raises `RequestFailed`, with those that are stored, where one is missing."""
        return self.read(request, fresh=frozenset())

    def missing(self, request: CompletionRequest) -> list[int]:
        return [sample for sample in range(request.count) if self.answer(request, sample) is None]

    def answer(self, request: CompletionRequest, sample: int) -> StoredSample | None:
        """Return the row with the answer: the model's own, or a fallback's where all models before it failed."""
        rows = (self.known.get(asked.keys[sample]) for asked in with_fallbacks(request))
        return next((row for row in rows if row is None or row.response is not None), None)

    def read(self, request: CompletionRequest, fresh: Collection[int]) -> list[Completion]:
        """Read a request's samples from the known rows; the samples in `fresh` were requested in this run."""
        answers = {sample: self.answer(request, sample) for sample in range(request.count)}
        completed = {sample: self._read(row, cached=sample not in fresh) for sample, row in answers.items() if row}
        if len(completed) < request.count:
            raise RequestFailed(self._reason(request), completed)
        return list(completed.values())

    def _read(self, row: StoredSample, *, cached: bool) -> Completion:
        return read_sample(row, cached=cached)

    def _reason(self, request: CompletionRequest) -> str:
        rows = (self.known.get(key) for asked in with_fallbacks(request) for key in asked.keys)
        reasons = dict.fromkeys(row.error for row in rows if row and row.error)
        return "; then ".join(reasons) or "not in the store"


def with_fallbacks(request: CompletionRequest) -> Iterator[CompletionRequest]:
    """Yield the request to its own model, then the same request to each fallback."""
    yield request
    for model in request.model.backups:
        yield replace(request, model=model)


def make_store_completer(store: Store, question_ids: Iterable[str]) -> StoreCompleter:
    return StoreCompleter(store.rows(question_ids))


class RecordingCompleter:
    """A `Complete` that records the requests it passes on."""

    def __init__(self, complete: Complete) -> None:
        self.complete = complete
        self.requests: list[CompletionRequest] = []

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        self.requests.append(request)
        return await self.complete(request)


EVERY_ROLE = frozenset(Role)


def make_completer(
    session: Session, question_ids: Iterable[str], asks: Collection[Role] = EVERY_ROLE, run: str = ""
) -> "SessionCompleter":
    """Return a completer for some questions of a run, which loads their stored samples and counts their usage."""
    ids = list(question_ids)
    under_way = session.batch_store.find_open(ids)  # before the rows: an answered sample leaves its batch
    return SessionCompleter(session, session.store.rows(ids), asks, run, under_way)


class SessionCompleter(StoreCompleter):
    """A `Complete` that requests the samples that are not stored, for the roles in `asks`.

    It belongs to a set of questions, whose rows it keeps in memory. It raises `ConfigError` rather than request samples
    that are in an open batch (by key in `under_way`).
    """

    def __init__(
        self,
        session: Session,
        known: dict[str, StoredSample],
        asks: Collection[Role] = EVERY_ROLE,
        run: str = "",
        under_way: Mapping[str, Batch] | None = None,
    ) -> None:
        super().__init__(known)
        self.asks = asks
        self.under_way = under_way or {}
        self.tally = Tally(above=session.tally, run=run)
        self.session = session
        self._locks: dict[str, asyncio.Lock] = {}
        self._draws = Counter(key.partition(ASIDE)[0] for key in known if ASIDE in key)
        self._counted: set[str] = set()
        self._fresh: dict[str, Completion] = {}

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the samples, requesting the missing ones; callable from any loop."""
        return await self.session.call(self._complete(request))

    async def _complete(self, request: CompletionRequest) -> Sequence[Completion]:
        async with self._locks.setdefault(request.keys[0], asyncio.Lock()):  # equal requests are sent once
            missing = self.missing(request)
            self._count_stored(request)
            if missing and request.role in self.asks:
                await self._ask_in_turn(request, missing)
        return self.read(request, fresh=missing)

    def _count_stored(self, request: CompletionRequest) -> None:
        """Count the samples from the store, each once, though growth may request it again with further siblings."""
        new = [sample for sample, key in enumerate(request.keys) if key not in self._counted]
        self._counted.update(request.keys)
        stored = [sample for sample in new if self.answer(request, sample) is not None]
        self.tally.add(request.role, Usage(cached_completions=len(stored)))

    async def _ask_in_turn(self, request: CompletionRequest, missing: Sequence[int]) -> None:
        """Request samples from the model, then those still missing from its fallbacks."""
        left, fallbacks = missing, len(request.model.fallbacks)
        for place, asked in enumerate(with_fallbacks(request)):
            buy = partial(self._request_run, asked, has_spare=place < fallbacks)
            await gather_all(buy(first, count) for first, count in group_runs(left))
            if not (left := [sample for sample in left if self.answer(request, sample) is None]):
                return

    async def _request_run(self, request: CompletionRequest, first: int, count: int, *, has_spare: bool) -> None:
        """Request consecutive siblings at once, then each that the provider left out by itself."""
        answered = await self._request_samples(request, first, count, has_spare=has_spare)
        left = range(first + answered, first + count) if answered else range(0)
        await gather_all(self._request_samples(request, sample, 1, has_spare=has_spare) for sample in left)

    async def _request_samples(self, request: CompletionRequest, first: int, count: int, *, has_spare: bool) -> int:
        """Request samples, keep their rows (answers or errors), and return the number of answers."""
        self._raise_if_under_way(request.keys[first : first + count])
        drawn = self.with_draw(request, first)
        has_failed = any(key in self.known for key in request.keys[first : first + count])  # a row without an answer
        rows = await self.session.ask(drawn, first, count, self.tally, has_spare=has_spare, has_failed=has_failed)
        self.known.update((row.key, row) for row in rows)
        bought = {row.key: read_sample(row, cached=False) for row in rows if row.response is not None}
        for completion in bought.values():
            self.tally.add(request.role, measure_usage(completion))
        self._fresh |= bought
        return len(bought)

    def _read(self, row: StoredSample, *, cached: bool) -> Completion:
        return (None if cached else self._fresh.pop(row.key, None)) or super()._read(row, cached=cached)

    def _raise_if_under_way(self, keys: Sequence[str]) -> None:
        """Stop the run where samples are in an open batch, rather than pay for them twice."""
        for batch in (self.under_way[key] for key in keys if key in self.under_way):
            self.session.stopped = self.session.stopped or ConfigError(
                f"dataset {batch.dataset}: missing samples are under way in batch {batch.label}, and would be paid for "
                'twice; collect them with run.mode = "batch", or abandon the batch with: '
                f"malt batches --forget {batch.label}"
            )
            raise self.session.stopped

    def with_draw(self, request: CompletionRequest, first: int) -> CompletionRequest:
        """Return the request with its `draw`: the number of answers to sample `first` that were set aside."""
        return replace(request, draw=self._draws[request.keys[first]])


def read_sample(row: StoredSample, *, cached: bool) -> Completion:
    """Read a row that has an answer. Raises `StoreError` where the row is damaged."""
    try:
        return read_response(
            row.response or "", row.key, cost_usd=row.cost_usd, latency_s=row.latency_s, cached=cached, run=row.run
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreError(
            f"the store's answer {row.key} to question {row.question_id!r} is damaged ({error}); "
            "delete that row, and run again"
        ) from error


def measure_usage(completion: Completion) -> Usage:
    prompt, written = completion.prompt_tokens or 0, completion.completion_tokens or 0
    return Usage(completions=1, prompt_tokens=prompt, completion_tokens=written, cost_usd=completion.cost_usd)


def group_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Group ascending numbers into consecutive runs, each as (first, count)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
