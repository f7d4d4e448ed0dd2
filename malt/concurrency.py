"""Wait for awaitables together or in turn, without cancelling what is paid for; run blocking work in a thread."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol, TypeVar

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
