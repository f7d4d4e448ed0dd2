"""Completers: the two ways to complete a request, from the store alone or with the endpoint behind it.

A fallback's answer has the key that it would have if the fallback were the role's model, so whatever config asks that
model the same has it for nothing. It stands in for the model's own answer where the store says why that one cannot be
had: a rerun goes on with what stood in, and asks neither model again.
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
    """A `Complete` over the store alone: a question's trees are grown again without a request."""

    def __init__(self, known: dict[str, StoredSample]) -> None:
        self.known = known

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return the stored samples; raises `RequestFailed` with those there are where one is missing."""
        return self.read(request, fresh=frozenset())

    def missing(self, request: CompletionRequest) -> list[int]:
        return [sample for sample in range(request.count) if self.answer(request, sample) is None]

    def answer(self, request: CompletionRequest, sample: int) -> StoredSample | None:
        """Return the answer that counts: the model's own, else that of a fallback where those before it failed."""
        rows = (self.known.get(asked.keys[sample]) for asked in with_fallbacks(request))
        return next((row for row in rows if row is None or row.response is not None), None)

    def read(self, request: CompletionRequest, fresh: Collection[int]) -> list[Completion]:
        """Read a request's samples out of what is known; `fresh` ones were asked for in this run."""
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
    """Yield a request as it is put to its model, then to that model's fallbacks."""
    yield request
    for model in request.model.backups:
        yield replace(request, model=model)


def make_store_completer(store: Store, question_ids: Iterable[str]) -> StoreCompleter:
    return StoreCompleter(store.rows(question_ids))


class RecordingCompleter:
    """A `Complete` that notes what is asked for."""

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
    """Return what some questions of a run ask with: it knows their stored samples, and counts what they use."""
    ids = list(question_ids)
    under_way = session.batch_store.find_open(ids)  # before the rows: what is answered leaves the batches
    return SessionCompleter(session, session.store.rows(ids), asks, run, under_way)


class SessionCompleter(StoreCompleter):
    """A `Complete` that asks for what is not stored, where the role is one that may be asked.

    Made for a set of questions, whose rows it keeps at hand. What lies in a batch, by key in `under_way`, it does not
    ask for beside it: that raises `ConfigError`.
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
        """Return the samples, asking for the missing ones; callable from any loop."""
        return await self.session.call(self._complete(request))

    async def _complete(self, request: CompletionRequest) -> Sequence[Completion]:
        async with self._locks.setdefault(request.keys[0], asyncio.Lock()):  # equal requests are asked once
            missing = self.missing(request)
            self._count_stored(request)
            if missing and request.role in self.asks:
                await self._ask_in_turn(request, missing)
        return self.read(request, fresh=missing)

    def _count_stored(self, request: CompletionRequest) -> None:
        """Count what the store had: each sample once, though growth may ask for it again with further siblings."""
        new = [sample for sample, key in enumerate(request.keys) if key not in self._counted]
        self._counted.update(request.keys)
        stored = [sample for sample in new if self.answer(request, sample) is not None]
        self.tally.add(request.role, Usage(cached_completions=len(stored)))

    async def _ask_in_turn(self, request: CompletionRequest, missing: Sequence[int]) -> None:
        """Ask the model, then its fallbacks for what is still missing."""
        left, fallbacks = missing, len(request.model.fallbacks)
        for place, asked in enumerate(with_fallbacks(request)):
            buy = partial(self._request_run, asked, has_spare=place < fallbacks)
            await gather_all(buy(first, count) for first, count in group_runs(left))
            if not (left := [sample for sample in left if self.answer(request, sample) is None]):
                return

    async def _request_run(self, request: CompletionRequest, first: int, count: int, *, has_spare: bool) -> None:
        """Ask for a run of siblings at once, and singly for those that the provider left out."""
        had = await self._request_samples(request, first, count, has_spare=has_spare)
        left = range(first + had, first + count) if had else range(0)
        await gather_all(self._request_samples(request, sample, 1, has_spare=has_spare) for sample in left)

    async def _request_samples(self, request: CompletionRequest, first: int, count: int, *, has_spare: bool) -> int:
        """Ask, remember what came or why nothing did, and return how many samples came."""
        self._raise_if_under_way(request.keys[first : first + count])
        drawn = self.with_draw(request, first)
        has_failed = any(key in self.known for key in request.keys[first : first + count])  # a row, and no answer
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
        """End the run rather than pay twice."""
        for batch in (self.under_way[key] for key in keys if key in self.under_way):
            self.session.stopped = self.session.stopped or ConfigError(
                f"dataset {batch.dataset}: what is missing is under way in batch {batch.label}, and would be paid for "
                'twice; collect it with run.mode = "batch", or let it go with: '
                f"malt batches --forget {batch.label}"
            )
            raise self.session.stopped

    def with_draw(self, request: CompletionRequest, first: int) -> CompletionRequest:
        """Return a request with how often answers to its samples, from `first` on, were set aside."""
        return replace(request, draw=self._draws[request.keys[first]])


def read_sample(row: StoredSample, *, cached: bool) -> Completion:
    """Read a row that has an answer. Raises `StoreError` where it is not what a session wrote."""
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
    """Group ascending numbers into runs without a gap, each as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
