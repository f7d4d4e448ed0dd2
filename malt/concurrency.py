"""Waiting for awaitables without cancelling paid requests, work in a thread, a fair lock, a background event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Wait(Protocol):
    """Function that waits for several awaitables; results keep their order."""

    async def __call__(self, work: Iterable[Awaitable[T]]) -> list[T]:
        """Return all results, or raise the first error."""
        ...


async def gather_all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all awaitables, then return their results or raise the first error, which cancels none of the others."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def gather_in_turn(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await one after another: cheaper than tasks where results are there at once, as with stored answers."""
    return [await each for each in work]


async def run_to_end(work: Callable[[], T], stop: Callable[[], None], within_s: float) -> T:
    """Run blocking work in a thread. When cancelled, call `stop`, and wait at most `within_s` for the work to end."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        with suppress(TimeoutError):
            ending = asyncio.gather(working, asyncio.to_thread(stop), return_exceptions=True)
            await asyncio.wait_for(ending, within_s)
        raise


async def within(limit_s: float, work: Awaitable[T]) -> T:
    """Await work; raise `TimeoutError` after `limit_s` seconds of this process's running time.

    Suspended time (SIGSTOP, a sleeping laptop) does not count, so that a response that has arrived can still be read.
    """
    task, left, step = asyncio.ensure_future(work), limit_s, limit_s / 10
    clock = asyncio.get_running_loop().time
    try:
        while left > 0:
            since = clock()
            if (await asyncio.wait({task}, timeout=min(left, step)))[0]:
                return task.result()
            took = clock() - since
            left = left - took if took < 2 * step else max(left - step, step)
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class FairLock:
    """Lock that goes to the waiting question that first asked for it, and within a question in order of arrival.

    Not thread-safe: all methods run on one event loop.
    """

    def __init__(self) -> None:
        self._arrivals = count()
        self._first_arrival: dict[str, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.is_taken = False

    @asynccontextmanager
    async def turn(self, question: str) -> AsyncIterator[None]:
        """Wait for the lock, and hold it during the context."""
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
        granted = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (place, arrival, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # granted just before the cancellation
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Wake the next waiter; the lock stays taken, so that no newcomer gets it before that waiter runs."""
        while self._waiting:
            *_, granted = heappop(self._waiting)
            if not granted.done():
                granted.set_result(None)
                return
        self.is_taken = False


class BackgroundLoop:
    """Event loop in its own thread, started for its first user and closed after its last.

    HTTP clients belong to the loop that first used them, so all sessions of a process share one loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> asyncio.AbstractEventLoop:
        """Return the running loop; each `enter` needs one `leave`."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="malt-background", daemon=True)
                self._thread.start()
            self._users += 1
            return self._loop

    def leave(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stop using the loop; the last user runs `farewell` on it, cancels its remaining tasks and closes it."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            asyncio.run_coroutine_threadsafe(farewell(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(_cancel_others())
            self._loop.close()
            self._loop = self._thread = None


async def _cancel_others() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
