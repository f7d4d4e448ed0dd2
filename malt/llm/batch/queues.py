"""Queues: how many items a provider takes of a model at once, as it tells by refusing batches, and for how long."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from malt.config.roles import ModelSpec
from malt.llm.batch import api
from malt.llm.rate_limit.limiter import EndpointKey, endpoint_key
from malt.llm.store.batches import Batch

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
