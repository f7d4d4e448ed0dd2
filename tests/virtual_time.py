"""An event loop whose clock moves on by itself while everybody sleeps: minutes of waiting, exact, in milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SleepsAtOnce(selectors.SelectSelector):
    """A selector that moves a clock on instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in such time."""

    def __init__(self) -> None:
        self.sleeper = SleepsAtOnce()
        super().__init__(self.sleeper)

    def time(self) -> float:
        return self.sleeper.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
