"""The process's background loop: one event loop in a thread of its own, for as long as somebody uses it.

HTTP clients belong to the loop that first used them, so all sessions of a process share one.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """A loop that starts with its first user and ends with its last."""

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
            self._loop.run_until_complete(cancel_others())
            self._loop.close()
            self._loop = self._thread = None


async def cancel_others() -> None:
    """Cancel all other tasks of this loop, and wait until they have ended."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


background = Background()
