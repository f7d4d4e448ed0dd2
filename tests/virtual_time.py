"""An event loop whose clock moves on by itself while everybody sleeps: minutes of waiting, exact, in milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

MOMENT_S = 1e-9


class SleepsAtOnce(selectors.SelectSelector):
    """A selector that moves a clock on instead of waiting."""

    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in such time."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.sleeper = SleepsAtOnce(now_s)
        super().__init__(self.sleeper)

    def time(self) -> float:
        """Every look takes a moment, as ever: who sleeps as long as another but began later wakes up later."""
        self.sleeper.now_s += MOMENT_S
        return self.sleeper.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
