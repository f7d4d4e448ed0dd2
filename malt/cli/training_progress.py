"""How training goes, shown on stderr while it does."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from malt.cli.terminal import console, warn

Tell = Callable[[Mapping[str, Any]], None]
_PLAIN_EVERY_S = 10.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def training_progress() -> Iterator[Tell]:
    """Show on stderr how training goes: a bar a stage on a terminal, a line now and then elsewhere."""
    if not console(stderr=True).is_terminal:
        yield _announcing(_Lines())
        return
    columns = (TextColumn("{task.description:<13}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns, console=console(stderr=True)) as bars:
        yield _announcing(_Bars(bars))


def _announcing(tell: Tell) -> Tell:
    """Say, before anything else is told, whom a training waits for."""

    def announce(event: Mapping[str, Any]) -> None:
        if event["event"] == "waiting":
            warn(f"models {event['models']}: waiting for {event['holder']}")
        tell(event)

    return announce


class _Lines:
    """Prints a line at the first and last step of a stage, and now and then between."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take what a training process tells."""
        if event["event"] != "step":
            return
        is_edge = event["step"] in (1, event["steps"])
        if is_edge or time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            warn(f"{event['role']} {event['stage']} {event['step']}/{event['steps']}: {_describe(event)}")


class _Bars:
    """Keeps a bar a role and stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._tasks = bars, dict[str, Any]()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take what a training process tells."""
        if event["event"] == "step":
            name = f"{event['role']} {event['stage']}"
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=event["steps"], at="")
            self._bars.update(self._tasks[name], completed=event["step"], at=_describe(event))


def _describe(event: Mapping[str, Any]) -> str:
    """Write loss, speed and time left."""
    left = f"{event['left_s']:.0f} s left" if event["left_s"] < 120 else f"{event['left_s'] / 60:.0f} min left"
    return f"loss {event['loss']:.4f}, {event['tokens_per_s']:,.0f} tokens/s, {left}"
