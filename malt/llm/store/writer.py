"""BatchedWriter: what arrives while the store commits goes into the next commit."""

import asyncio
from collections.abc import Sequence

from malt.llm.store.samples import Store, StoredSample


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
            rows = [row for group, _ in batch for row in group]
            try:
                held = self._store.write(rows) if self._closing else await asyncio.to_thread(self._store.write, rows)
            except Exception as error:
                for _, committed in batch:
                    committed.set_exception(error)
            else:
                for group, committed in batch:
                    committed.set_result([held[row.key] for row in group])
