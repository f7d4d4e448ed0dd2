"""An event loop whose clock jumps ahead while all tasks sleep: minutes of exact waiting take milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 1e-9


class SkippingSelector(selectors.SelectSelector):
    """A selector that advances a clock instead of waiting."""

    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "deadlock: no task sleeps, and all of them wait"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.sleeper = SkippingSelector(now_s)
        super().__init__(self.sleeper)

    def time(self) -> float:
        """Advance by a tick at each reading: of two equal sleeps the one that starts later ends later."""
        self.sleeper.now_s += TICK_S
        return self.sleeper.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
