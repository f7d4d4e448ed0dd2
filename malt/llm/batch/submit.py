"""Batches of one model: packed until full or as large as the provider takes, recorded in the store, then submitted."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import uuid4

from malt.canonical_json import canonical_json
from malt.config.roles import ModelSpec, Role
from malt.errors import ConfigError, MaltError, RunStopped
from malt.llm.batch import api
from malt.llm.batch.api import BatchClient
from malt.llm.batch.collector import WantedSamples
from malt.llm.budget import NOTHING, Amount
from malt.llm.client.session import Session
from malt.llm.provider.errors import name_endpoint
from malt.llm.provider.routing import find_route
from malt.llm.rate_limit.limiter import EndpointKey, endpoint_key
from malt.llm.rate_limit.policy import Policy
from malt.llm.store.batches import Batch, BatchItem, BatchStore, name_process, submitting
from malt.llm.usage import Tally, Usage

_GROWTH = 4
"""Factor by which the next batch may be larger than one that there was room for."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Most items and bytes in one batch."""

    items: int = api.MOST_ITEMS
    bytes: int = api.MOST_BYTES


@dataclass
class _Queue:
    """One model's queue. Who else fills it is not told."""

    most: int
    """Items in the next batch."""
    fits: int = 0
    """Items that there was room for."""
    full_since: float | None = None
    is_narrow: bool = False
    """Whether it was full once: then one batch at a time."""


class Queues:
    """The queues of the models that a run asks in batches."""

    def __init__(self, size: BatchSize) -> None:
        self._size = size
        self._queues: dict[EndpointKey, _Queue] = {}
        self._under_way: Counter[EndpointKey] = Counter()

    def note_under_way(self, batches: Iterable[Batch]) -> None:
        self._under_way = Counter(endpoint_key(batch.asked) for batch in batches)

    def enter(self, model: ModelSpec) -> None:
        self._under_way[endpoint_key(model)] += 1

    def size_for(self, model: ModelSpec) -> BatchSize:
        return replace(self._size, items=self._queue(model).most)

    def is_full_for(self, model: ModelSpec) -> bool:
        """Whether the next batch is to wait for the one before it."""
        return self._queue(model).is_narrow and self._under_way[endpoint_key(model)] > 0

    def took(self, model: ModelSpec, items: int) -> None:
        """Note that there was room for a batch."""
        queue = self._queue(model)
        queue.full_since, queue.fits = None, max(queue.fits, items)
        queue.most = min(self._size.items, max(queue.most, _GROWTH * items))

    def refused(self, model: ModelSpec, items: int) -> bool:
        """Note that there was none; return whether a smaller batch may fit. If not, others fill it, for now."""
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
    """An item as it is sent, the rows of its samples, and the most that it may take."""

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
    """Of the file, in bytes."""
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
    """Packs what a run wants, and hands in what is full; the rest with `finish`. `close` lets go of what is left."""

    def __init__(
        self, session: Session, batch_store: BatchStore, dataset: str, tally: Tally, queues: Queues, patience: Policy
    ) -> None:
        self.wanted = 0
        """Items, packed or not."""
        self.short: Amount | None = None
        """Worst case of the first item that the budget had no room for."""
        self._session, self._batch_store, self._dataset, self._tally = session, batch_store, dataset, tally
        self._queues, self._patience = queues, patience
        self._drafts: dict[EndpointKey, _BatchDraft] = {}

    async def add(self, wanted: WantedSamples) -> None:
        """Pack one item; not where the budget has no room for it, or the provider's queue none for another batch."""
        self.wanted += 1
        model = wanted.request.model
        worst = self._session.worst_case(wanted.request, wanted.count, batched=True)
        line = api.make_item(wanted.request, await find_route(model), wanted.first, wanted.count)
        item = _PackedItem(canonical_json(line) + b"\n", _make_items(wanted, self._dataset), worst)
        draft = self._drafts.get(endpoint_key(model))
        if draft is not None and not draft.has_room(item, self._queues.size_for(model)):
            await self._hand_in(draft)
            draft = None
        if not self._session.budget.has_room_for(worst):
            self.short = self.short or worst
        elif draft is not None or not self._queues.is_full_for(model):
            draft = draft or self._start_draft(model)
            draft.add(item, wanted.custom_id)
            self._session.budget.reserve(draft.mark, draft.worst)

    def _start_draft(self, model: ModelSpec) -> _BatchDraft:
        draft = self._drafts[endpoint_key(model)] = _BatchDraft(model)
        submitting.add(draft.mark)
        return draft

    async def finish(self) -> None:
        for draft in list(self._drafts.values()):
            await self._hand_in(draft)

    def close(self) -> None:
        """Discard what was packed and not submitted."""
        for draft in self._drafts.values():
            submitting.discard(draft.mark)
            self._session.budget.settle_reserved(draft.mark, NOTHING)

    async def _hand_in(self, draft: _BatchDraft) -> None:
        """Write a batch down, then hand it in: whoever comes after a crash looks for its mark at the provider."""
        ours = await asyncio.to_thread(self._batch_store.plan, self._batch(draft), draft.rows())
        try:
            if ours:
                await self._submit(draft, ours)
            else:
                await self._forget(draft)
        finally:
            submitting.discard(draft.mark)
            del self._drafts[endpoint_key(draft.model)]

    async def _submit(self, draft: _BatchDraft, ours: Collection[str]) -> None:
        """Hand a batch in. What fails before its making is tried, or refuses it, leaves nothing behind."""
        client = BatchClient(draft.model, self._patience, self._session.raise_if_stopped)
        try:
            file_id = await client.upload(draft.lines(ours))
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
        for custom_id in ours:
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
