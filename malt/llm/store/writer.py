"""BatchedWriter: what arrives while the store commits goes into the next commit."""

import asyncio
from collections.abc import Sequence

from malt.errors import StoreLost
from malt.llm.store.samples import Store, StoredSample

_Batch = Sequence[tuple[Sequence[StoredSample], asyncio.Future[list[StoredSample]]]]


class BatchedWriter:
    """Groups what arrives while a commit is under way into the next one. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[tuple[Sequence[StoredSample], asyncio.Future[list[StoredSample]]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._closing = False

    async def put(self, rows: Sequence[StoredSample]) -> list[StoredSample]:
        """Return what the store holds for these rows' keys, once they are committed; raises `StoreError` if not."""
        committed: asyncio.Future[list[StoredSample]] = asyncio.get_running_loop().create_future()
        self._pending.append((rows, committed))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.shield(committed)

    def close(self) -> None:
        """Write without a thread from now on: a process that ends can start none."""
        self._closing = True

    async def drain(self) -> None:
        """Wait until nothing is left to write."""
        if self._flushing is not None:
            await self._flushing

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            await self._commit(batch)

    async def _commit(self, batch: _Batch) -> None:
        """Write what came together in one commit; where that fails each on its own, so that one fails alone."""
        rows = [row for group, _ in batch for row in group]
        try:
            held = self._store.write(rows) if self._closing else await asyncio.to_thread(self._store.write, rows)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreLost):
                for each in batch:
                    await self._commit([each])
                return
            for _, committed in batch:
                committed.set_exception(error)
        else:
            for group, committed in batch:
                committed.set_result([held[row.key] for row in group])
