"""Parcels: what is wanted of one model, packed until a batch is full, written down, and handed in."""

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import uuid4

from malt.canonical_json import canonical_json
from malt.config.spec import ModelSpec, Role
from malt.errors import ConfigError, MaltError, RunStopped
from malt.llm.batch import api
from malt.llm.batch.collector import Wanted
from malt.llm.batch.queues import Queues, Size
from malt.llm.batch.retrying import BatchDesk
from malt.llm.budget import NOTHING, Amount
from malt.llm.client.session import Session
from malt.llm.provider.errors import place_of
from malt.llm.provider.routing import way_to
from malt.llm.rate_limit.limiter import Where, where_is
from malt.llm.rate_limit.rate import Policy
from malt.llm.store.batches import Batch, BatchItem, BatchStore, handing_in, this_process
from malt.llm.usage import Tally, Usage


class Packed(NamedTuple):
    """An item as it is sent, the rows of its samples, and the most that it may take."""

    line: bytes
    samples: list[BatchItem]
    worst: Amount


@dataclass
class Parcel:
    """Items for one model, which become one batch."""

    model: ModelSpec
    mark: str = field(default_factory=lambda: uuid4().hex)
    items: dict[str, Packed] = field(default_factory=dict)
    size: int = 0
    """Of the file, in bytes."""
    worst: Amount = NOTHING

    def has_room(self, item: Packed, size: Size) -> bool:
        """Whether one more item fits."""
        return not self.items or (len(self.items) < size.items and self.size + len(item.line) <= size.bytes)

    def add(self, item: Packed, custom_id: str) -> None:
        """Put one item in."""
        self.items[custom_id] = item
        self.size += len(item.line)
        self.worst = self.worst.plus(item.worst)

    def rows(self) -> list[BatchItem]:
        """Return the rows of all its samples."""
        return [replace(sample, mark=self.mark) for item in self.items.values() for sample in item.samples]

    def lines(self, custom_ids: Iterable[str]) -> bytes:
        """Return the file of some of its items."""
        return b"".join(self.items[custom_id].line for custom_id in sorted(custom_ids))


class Packer:
    """Packs what a run wants, and hands in what is full; the rest with `finish`. `close` lets go of what is left."""

    def __init__(
        self, session: Session, book: BatchStore, dataset: str, tally: Tally, queues: Queues, patience: Policy
    ) -> None:
        self.wanted = 0
        """Items, packed or not."""
        self.short: Amount | None = None
        """What the first item that the budget had no room for may take."""
        self._session, self._book, self._dataset, self._tally = session, book, dataset, tally
        self._queues, self._patience = queues, patience
        self._parcels: dict[Where, Parcel] = {}

    async def add(self, wanted: Wanted) -> None:
        """Pack one item; not where the budget has no room for it, or the provider's queue none for another batch."""
        self.wanted += 1
        model = wanted.request.model
        worst = self._session.worst_case(wanted.request, wanted.count, batched=True)
        line = api.item(wanted.request, await way_to(model), wanted.first, wanted.count)
        item = Packed(canonical_json(line) + b"\n", samples_of(wanted, self._dataset), worst)
        parcel = self._parcels.get(where_is(model))
        if parcel is not None and not parcel.has_room(item, self._queues.size_for(model)):
            await self._hand_in(parcel)
            parcel = None
        if not self._session.budget.has_room_for(worst):
            self.short = self.short or worst
        elif parcel is not None or not self._queues.is_full_for(model):
            parcel = parcel or self._begun(model)
            parcel.add(item, wanted.custom_id)
            self._session.budget.pledge(parcel.mark, parcel.worst)

    def _begun(self, model: ModelSpec) -> Parcel:
        parcel = self._parcels[where_is(model)] = Parcel(model)
        handing_in.add(parcel.mark)
        return parcel

    async def finish(self) -> None:
        """Hand in all that was packed."""
        for parcel in list(self._parcels.values()):
            await self._hand_in(parcel)

    def close(self) -> None:
        """Let go of what was packed and not handed in."""
        for parcel in self._parcels.values():
            handing_in.discard(parcel.mark)
            self._session.budget.redeem(parcel.mark, NOTHING)

    async def _hand_in(self, parcel: Parcel) -> None:
        """Write a batch down, then hand it in: whoever comes after a crash looks for its mark at the provider."""
        ours = await asyncio.to_thread(self._book.plan, self._batch(parcel), parcel.rows())
        try:
            if ours:
                await self._submit(parcel, ours)
            else:
                await self._forget(parcel)
        finally:
            handing_in.discard(parcel.mark)
            del self._parcels[where_is(parcel.model)]

    async def _submit(self, parcel: Parcel, ours: Collection[str]) -> None:
        """Hand a batch in. What fails before its making is tried, or refuses it, leaves nothing behind."""
        desk = BatchDesk(parcel.model, self._patience, self._session.raise_if_stopped)
        try:
            file_id = await desk.upload(parcel.lines(ours))
            if not await asyncio.to_thread(self._book.trying, parcel.mark):
                raise RunStopped(f"batch {parcel.mark} was given up before it was made; run again to go on")
        except MaltError:
            await self._forget(parcel)
            raise
        try:
            job = await desk.create(file_id, parcel.mark)
        except ConfigError:
            await self._forget(parcel)
            raise
        self._queues.enter(parcel.model)
        if not await asyncio.to_thread(self._book.submitted, parcel.mark, job.batch_id):
            raise RunStopped(
                f"batch {job.batch_id} was made at {place_of(parcel.model)} after it had been given up here: cancel it "
                "there, and run again"
            )
        for custom_id in ours:
            self._tally.add(Role(parcel.items[custom_id].samples[0].role), Usage(requests=1))

    async def _forget(self, parcel: Parcel) -> None:
        await asyncio.to_thread(self._book.release, parcel.mark)
        self._session.budget.redeem(parcel.mark, NOTHING)

    def _batch(self, parcel: Parcel) -> Batch:
        return Batch(
            mark=parcel.mark,
            dataset=self._dataset,
            model=parcel.model.model,
            api_base=parcel.model.api_base,
            api_key_env=parcel.model.api_key_env,
            usd=parcel.worst.usd,
            tokens=parcel.worst.tokens,
            owner=this_process(),
            planned_at=time.time(),
        )


def samples_of(wanted: Wanted, dataset: str) -> list[BatchItem]:
    """Return the rows of one item, one a sample."""
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
