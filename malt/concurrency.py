"""Wait for awaitables together or in turn, without cancelling what is paid for; a fair lock; work in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Wait(Protocol):
    """A way to wait for several awaitables; results come in order."""

    async def __call__(self, work: Iterable[Awaitable[T]]) -> list[T]:
        """Return all results, or raise the first error."""
        ...


async def gather_all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then return their results or raise the first error; no error cancels the others."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def gather_in_turn(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for one after another: cheaper than tasks where nothing takes time, as with stored answers."""
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
    """Wait for work; raise `TimeoutError` once the process has run for so long meanwhile.

    A process that was stopped (SIGSTOP, a laptop that slept) first gets to read what has arrived.
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
    """A lock that goes to the question that came here first, and for one question in the order of arrival.

    All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._arrivals = count()
        self._first_arrival: dict[str, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.is_taken = False

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


class BackgroundLoop:
    """One event loop in a thread of its own, which starts with its first user and ends with its last.

    HTTP clients belong to the loop that first used them, so all who ask in a process share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> asyncio.AbstractEventLoop:
        """Return the loop, running; every `enter` takes a `leave`."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="malt-background", daemon=True)
                self._thread.start()
            self._users += 1
            return self._loop

    def leave(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stop using the loop; the last one runs `farewell` on it and ends it, with whatever is left there."""
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
