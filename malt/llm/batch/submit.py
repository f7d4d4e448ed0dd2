"""Submission of batches: missing samples are collected, packed by model, recorded in the store, then submitted."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from malt.canonical_json import canonical_json
from malt.concurrency import gather_all
from malt.config.roles import ModelSpec, Role
from malt.errors import ConfigError, MaltError, RunStopped
from malt.llm.batch import api
from malt.llm.batch.api import BatchClient, make_custom_id, takes_batches
from malt.llm.budget import NOTHING, Amount, Tally, Usage
from malt.llm.client.completers import SessionCompleter, group_runs, with_fallbacks
from malt.llm.client.session import Session
from malt.llm.provider.errors import name_endpoint
from malt.llm.provider.routing import find_route
from malt.llm.rate_limit.limiter import EndpointKey, endpoint_key
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import CompletionRequest
from malt.llm.store.batches import Batch, BatchItem, BatchStore, name_process, submitting
from malt.llm.store.database import StoredSample


@dataclass(frozen=True, slots=True)
class WantedSamples:
    """Samples to request: first … first+count-1 of a request."""

    request: CompletionRequest
    first: int
    count: int

    @property
    def custom_id(self) -> str:
        return make_custom_id(self.request, self.first)


class BatchCollector(SessionCompleter):
    """A completer for some questions of a run in batch mode, which collects the missing samples of one level.

    `items` are the recorded batch items of these questions, by key. `failed` holds the keys that directly requested
    models failed to answer in this run; it grows.
    """

    def __init__(
        self,
        session: Session,
        known: dict[str, StoredSample],
        items: Mapping[str, BatchItem],
        failed: set[str],
        asks: Collection[Role],
        tally: Tally,
    ) -> None:
        super().__init__(session, known, asks, tally.run)
        self.tally = tally
        self.items = items
        self.failed = failed
        self.wanted: dict[str, WantedSamples] = {}
        self.waits_for: set[str] = set()
        """Marks of the open batches that hold missing samples."""
        self.put_off = 0
        """Number of direct samples postponed, as the budget has no room for them while batches are open."""
        self.short: Amount | None = None
        """Worst case of the first postponed request."""
        self.stored: Counter[Role] = Counter()
        """Number of samples stored by earlier runs, by role."""

    def _count_stored(self, request: CompletionRequest) -> None:
        for sample, key in enumerate(request.keys):
            if key not in self._counted and (row := self.answer(request, sample)) is not None:
                self._counted.add(key)
                self.stored[request.role] += row.run != self.tally.run

    async def _ask_in_turn(self, request: CompletionRequest, missing: Sequence[int]) -> None:
        """Collect for a batch the samples that the model has not given up, then the rest for its fallbacks."""
        left, fallbacks = list(missing), len(request.model.fallbacks)
        for place, asked in enumerate(with_fallbacks(request)):
            to_ask = [sample for sample in left if not self._is_given_up(asked, sample)]
            if takes_batches(asked.model):
                self._note(asked, to_ask)
            elif not self._puts_off(asked, to_ask):
                buy = partial(self._request_run, asked, has_spare=place < fallbacks)
                await gather_all(buy(first, count) for first, count in group_runs(to_ask))
                to_ask = [sample for sample in to_ask if self.answer(request, sample) is not None]
                self.failed.update(asked.keys[sample] for sample in left if self.answer(request, sample) is None)
            if not (left := [sample for sample in left if sample not in to_ask]):
                return

    def _puts_off(self, request: CompletionRequest, samples: Sequence[int]) -> bool:
        """Postpone samples to the next round where the budget has no room for them beside open batches."""
        if not samples or not self.session.budget.reserved:
            return False
        worst = self.session.worst_case(request, len(samples))
        if self.session.budget.has_room_for(worst):
            return False
        self.short, self.put_off = self.short or worst, self.put_off + len(samples)
        return True

    def _is_given_up(self, request: CompletionRequest, sample: int) -> bool:
        key = request.keys[sample]
        return key in self.failed or (key in self.items and self.items[key].given_up)

    def _note(self, request: CompletionRequest, samples: Sequence[int]) -> None:
        """Note the batches that already hold samples, and group the others into items: siblings together, where the
        provider takes `n`.
        """
        known = {sample: item for sample in samples if (item := self.items.get(request.keys[sample]))}
        self.waits_for.update(item.mark for item in known.values() if item.mark)
        free = [sample for sample in samples if sample not in known or known[sample].mark is None]
        has_siblings = self.session.endpoint(request.model).siblings
        together = [sample for sample in free if has_siblings and not (sample in known and known[sample].alone)]
        for first, count in (*group_runs(together), *((sample, 1) for sample in free if sample not in together)):
            wanted = WantedSamples(self.with_draw(request, first), first, count)
            self.wanted[wanted.custom_id] = wanted


_GROWTH = 4
"""Factor by which the next batch may be larger than one that the provider's queue accepted."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Maximum number of items and bytes in one batch."""

    items: int = api.MOST_ITEMS
    bytes: int = api.MOST_BYTES


@dataclass
class _Queue:
    """One model's queue at the provider, which other clients may fill unseen."""

    most: int
    """Maximum number of items in the next batch."""
    fits: int = 0
    """Most items that the queue has accepted in one batch."""
    full_since: float | None = None
    is_narrow: bool = False
    """Whether the queue was ever full: from then on only one batch is submitted at a time."""


class Queues:
    """Queues of the models that a run requests in batches."""

    def __init__(self, size: BatchSize) -> None:
        self._size = size
        self._queues: dict[EndpointKey, _Queue] = {}
        self._under_way: Counter[EndpointKey] = Counter()

    def note_open(self, batches: Iterable[Batch]) -> None:
        self._under_way = Counter(endpoint_key(batch.asked) for batch in batches)

    def enter(self, model: ModelSpec) -> None:
        self._under_way[endpoint_key(model)] += 1

    def size_for(self, model: ModelSpec) -> BatchSize:
        return replace(self._size, items=self._queue(model).most)

    def is_full_for(self, model: ModelSpec) -> bool:
        """Whether the next batch must wait for the one before it."""
        return self._queue(model).is_narrow and self._under_way[endpoint_key(model)] > 0

    def took(self, model: ModelSpec, items: int) -> None:
        """Note that the queue accepted a batch."""
        queue = self._queue(model)
        queue.full_since, queue.fits = None, max(queue.fits, items)
        queue.most = min(self._size.items, max(queue.most, _GROWTH * items))

    def refused(self, model: ModelSpec, items: int) -> bool:
        """Note that the queue had no room for a batch; return whether a smaller one may fit.

        If not, other batches fill it for now.
        """
        queue, is_alone = self._queue(model), self._under_way[endpoint_key(model)] <= 1
        queue.full_since, queue.is_narrow = queue.full_since or time.time(), True
        if is_alone and items > queue.fits:
            queue.most = max(1, queue.fits, items // 2)
        return queue.most < items

    def full_for_s(self, model: ModelSpec) -> float:
        since = self._queue(model).full_since
        return 0.0 if since is None else time.time() - since

    def _queue(self, model: ModelSpec) -> _Queue:
        return self._queues.setdefault(endpoint_key(model), _Queue(self._size.items))


class _PackedItem(NamedTuple):
    """An item as a line of the batch, with the rows of its samples and its worst-case cost."""

    line: bytes
    samples: list[BatchItem]
    worst: Amount


@dataclass
class _BatchDraft:
    """Items for one model that become one batch."""

    model: ModelSpec
    mark: str = field(default_factory=lambda: uuid4().hex)
    items: dict[str, _PackedItem] = field(default_factory=dict)
    size: int = 0
    """Size of the file in bytes."""
    worst: Amount = NOTHING

    def has_room(self, item: _PackedItem, size: BatchSize) -> bool:
        return not self.items or (len(self.items) < size.items and self.size + len(item.line) <= size.bytes)

    def add(self, item: _PackedItem, custom_id: str) -> None:
        self.items[custom_id] = item
        self.size += len(item.line)
        self.worst = self.worst.plus(item.worst)

    def rows(self) -> list[BatchItem]:
        return [replace(sample, mark=self.mark) for item in self.items.values() for sample in item.samples]

    def lines(self, custom_ids: Iterable[str]) -> bytes:
        return b"".join(self.items[custom_id].line for custom_id in sorted(custom_ids))


class BatchSubmitter:
    """Packs a run's wanted samples into batches and submits each full one.

    `finish` submits the rest; `close` discards batches that were not submitted.
    """

    def __init__(
        self, session: Session, batch_store: BatchStore, dataset: str, tally: Tally, queues: Queues, patience: Policy
    ) -> None:
        self.wanted = 0
        """Number of wanted items, packed or not."""
        self.short: Amount | None = None
        """Worst case of the first item that the budget had no room for."""
        self._session, self._batch_store, self._dataset, self._tally = session, batch_store, dataset, tally
        self._queues, self._patience = queues, patience
        self._drafts: dict[EndpointKey, _BatchDraft] = {}

    async def add(self, wanted: WantedSamples) -> None:
        """Pack one item, unless the budget has no room for it or the provider's queue none for another batch."""
        self.wanted += 1
        model, item = wanted.request.model, await self._pack(wanted)
        draft = self._drafts.get(endpoint_key(model))
        if draft is not None and not draft.has_room(item, self._queues.size_for(model)):
            await self._record_and_submit(draft)
            draft = None
        if not self._session.budget.has_room_for(item.worst):
            self.short = self.short or item.worst
        elif draft is not None or not self._queues.is_full_for(model):
            draft = draft or self._begin_draft(model)
            draft.add(item, wanted.custom_id)
            self._session.budget.reserve(draft.mark, draft.worst)

    async def _pack(self, wanted: WantedSamples) -> _PackedItem:
        worst = self._session.worst_case(wanted.request, wanted.count, batched=True)
        route = await find_route(wanted.request.model)
        line = api.make_item(wanted.request, route, wanted.first, wanted.count)
        return _PackedItem(canonical_json(line) + b"\n", _make_items(wanted, self._dataset), worst)

    def _begin_draft(self, model: ModelSpec) -> _BatchDraft:
        draft = self._drafts[endpoint_key(model)] = _BatchDraft(model)
        submitting.add(draft.mark)
        return draft

    async def finish(self) -> None:
        for draft in list(self._drafts.values()):
            await self._record_and_submit(draft)

    def close(self) -> None:
        """Discard what was packed and not submitted."""
        for draft in self._drafts.values():
            submitting.discard(draft.mark)
            self._session.budget.settle_reserved(draft.mark, NOTHING)

    async def _record_and_submit(self, draft: _BatchDraft) -> None:
        """Record a batch, then submit it: after a crash, the next process searches for its mark at the provider."""
        claimed = await asyncio.to_thread(self._batch_store.plan, self._batch(draft), draft.rows())
        try:
            if claimed:
                await self._submit(draft, claimed)
            else:
                await self._forget(draft)
        finally:
            submitting.discard(draft.mark)
            del self._drafts[endpoint_key(draft.model)]

    async def _submit(self, draft: _BatchDraft, claimed: Collection[str]) -> None:
        """Submit a batch. Its record is deleted where it fails before the call to create it, or is refused."""
        client = BatchClient(draft.model, self._patience, self._session.raise_if_stopped)
        try:
            file_id = await client.upload(draft.lines(claimed))
            if not await asyncio.to_thread(self._batch_store.note_attempt, draft.mark):
                raise RunStopped(f"batch {draft.mark} was given up before it was made; run again to go on")
        except MaltError:
            await self._forget(draft)
            raise
        try:
            remote = await client.create(file_id, draft.mark)
        except ConfigError:
            await self._forget(draft)
            raise
        self._queues.enter(draft.model)
        if not await asyncio.to_thread(self._batch_store.note_batch_id, draft.mark, remote.batch_id):
            raise RunStopped(
                f"batch {remote.batch_id} was made at {name_endpoint(draft.model)} after it had been given up here: "
                "cancel it there, and run again"
            )
        for custom_id in claimed:
            self._tally.add(Role(draft.items[custom_id].samples[0].role), Usage(requests=1))

    async def _forget(self, draft: _BatchDraft) -> None:
        await asyncio.to_thread(self._batch_store.release, draft.mark)
        self._session.budget.settle_reserved(draft.mark, NOTHING)

    def _batch(self, draft: _BatchDraft) -> Batch:
        return Batch(
            mark=draft.mark,
            dataset=self._dataset,
            model=draft.model.model,
            api_base=draft.model.api_base,
            api_key_env=draft.model.api_key_env,
            usd=draft.worst.usd,
            tokens=draft.worst.tokens,
            owner=name_process(),
            planned_at=time.time(),
        )


def _make_items(wanted: WantedSamples, dataset: str) -> list[BatchItem]:
    request = wanted.request
    return [
        BatchItem(
            key=request.keys[sample],
            mark=None,
            dataset=dataset,
            custom_id=wanted.custom_id,
            question_id=request.question_id,
            role=request.role.value,
            address=request.address,
            sample=sample,
        )
        for sample in range(wanted.first, wanted.first + wanted.count)
    ]
