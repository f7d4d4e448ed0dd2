"""Parcels: what is wanted of one model, packed until a batch is full, written down, and handed in."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import uuid4

from malt.errors import ConfigError
from malt.fingerprint import canonical_json
from malt.llm import batch_api
from malt.llm.batch_desk import BatchDesk
from malt.llm.batch_store import Batch, BatchItem, BatchStore, handing_in, this_process
from malt.llm.budget import Amount
from malt.llm.endpoints import Where, where_is
from malt.llm.gateway import way_to
from malt.llm.gathering import Wanted
from malt.llm.session import Session
from malt.llm.tally import Tally, Usage
from malt.spec import ModelSpec, Role


@dataclass(frozen=True, slots=True)
class Size:
    """How much goes into one batch."""

    items: int = batch_api.MOST_ITEMS
    bytes: int = batch_api.MOST_BYTES
    is_narrow: bool = False
    """The provider's queue was full: one batch of a model at a time."""


@dataclass
class Parcel:
    """Items for one model."""

    model: ModelSpec
    items: dict[str, "Packed"] = field(default_factory=dict)
    bytes: int = 0

    def has_room(self, item: "Packed", size: Size) -> bool:
        """Whether one more item fits."""
        return not self.items or (len(self.items) < size.items and self.bytes + len(item.line) <= size.bytes)

    def add(self, item: "Packed", custom_id: str) -> None:
        """Put one item in."""
        self.items[custom_id] = item
        self.bytes += len(item.line)


class Packed(NamedTuple):
    """An item as it is sent, the rows of its samples, and the most that it may take."""

    line: bytes
    samples: list[BatchItem]
    worst: Amount


NOTHING = Amount(0.0, 0)


class Packer:
    """Packs what a run wants, and hands in what is full; the rest with `finish`."""

    def __init__(self, session: Session, book: BatchStore, dataset: str, tally: Tally, size: Size) -> None:
        self.handed_in: set[str] = set()
        """Marks of the batches."""
        self.wanted = 0
        """Items, packed or not."""
        self.short: Amount | None = None
        """What the first item that the budget had no room for may take."""
        self._session, self._book, self._dataset, self._tally, self._size = session, book, dataset, tally, size
        self._parcels: dict[Where, Parcel] = {}
        self._queued: set[Where] = set()

    async def add(self, wanted: Wanted) -> None:
        """Pack one item; not where the budget has no room for it, or the provider's queue none for another batch."""
        self.wanted += 1
        where = where_is(wanted.request.model)
        worst = self._session.worst_case(wanted.request, wanted.count, batched=True)
        if not self._session.budget.has_room_for(worst):
            self.short = self.short or worst
            return
        if self._size.is_narrow and where in self._queued:
            return
        line = batch_api.item(wanted.request, await way_to(wanted.request.model), wanted.first, wanted.count)
        packed = Packed(canonical_json(line) + b"\n", samples_of(wanted, self._dataset), worst)
        parcel = self._parcels.setdefault(where, Parcel(wanted.request.model))
        if not parcel.has_room(packed, self._size):
            await self._hand_in(self._parcels.pop(where))
            await self.add(wanted)
        else:
            parcel.add(packed, wanted.custom_id)
            self._session.budget.hold(worst)

    async def finish(self) -> None:
        """Hand in all that was packed."""
        while self._parcels:
            await self._hand_in(self._parcels.pop(next(iter(self._parcels))))

    async def _hand_in(self, parcel: Parcel) -> None:
        """Write a batch down, then hand it in: whoever comes after a crash looks for its mark at the provider."""
        self._queued.add(where_is(parcel.model))
        for item in parcel.items.values():
            self._session.budget.settle(item.worst, NOTHING)
        batch = self._batch(parcel)
        handing_in.add(batch.mark)
        try:
            await self._send(batch, parcel)
        finally:
            handing_in.discard(batch.mark)

    async def _send(self, batch: Batch, parcel: Parcel) -> None:
        samples = [replace(sample, mark=batch.mark) for item in parcel.items.values() for sample in item.samples]
        ours = await asyncio.to_thread(self._book.plan, batch, samples)
        if not ours:
            await asyncio.to_thread(self._book.release, batch.mark)
            return
        self._session.budget.hold(batch.amount)
        lines = b"".join(parcel.items[custom_id].line for custom_id in sorted(ours))
        try:
            job = await BatchDesk(parcel.model).hand_in(lines, batch.mark)
        except ConfigError:  # it was refused
            await asyncio.to_thread(self._book.release, batch.mark)
            raise
        await asyncio.to_thread(self._book.submitted, batch.mark, job.batch_id)
        self.handed_in.add(batch.mark)
        for custom_id in ours:
            self._tally.add(Role(parcel.items[custom_id].samples[0].role), Usage(requests=1))

    def _batch(self, parcel: Parcel) -> Batch:
        return Batch(
            mark=uuid4().hex,
            dataset=self._dataset,
            model=parcel.model.model,
            api_base=parcel.model.api_base,
            api_key_env=parcel.model.api_key_env,
            usd=sum(item.worst.usd for item in parcel.items.values()),
            tokens=sum(item.worst.tokens for item in parcel.items.values()),
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
