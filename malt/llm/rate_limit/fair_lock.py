"""Turns: who is next where requests wait. Trees that were begun are finished before new ones are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count


class FairLock:
    """A lock that goes to the question that came here first, and for one question in the order of arrival.

    All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._arrivals = count()
        self._first_arrival: dict[str, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.is_taken = False
        """Whether somebody has the turn."""

    @asynccontextmanager
    async def turn(self, question: str) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the context."""
        arrival = next(self._arrivals)
        place = self._first_arrival.setdefault(question, arrival)
        if self.is_taken:
            await self._wait(place, arrival)
        self.is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, place: int, arrival: int) -> None:
        called = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (place, arrival, called))
        try:
            await called
        except asyncio.CancelledError:
            if not called.cancelled():  # it was called just before
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Call the next one; the lock stays taken meanwhile, so that nobody slips in between."""
        while self._waiting:
            *_, called = heappop(self._waiting)
            if not called.done():
                called.set_result(None)
                return
        self.is_taken = False
