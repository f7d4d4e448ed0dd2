"""Progress of a run or a training, shown on stderr, and what limits a run's rate."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from malt.cli.terminal import console, warn
from malt.config.roles import Role
from malt.config.spec import RunSpec

if TYPE_CHECKING:
    from malt.llm.budget import Tally
    from malt.llm.client.session import Session
    from malt.training.process import Tell

_REFRESH_S = 0.5
_PLAIN_EVERY_S = 10.0
"""Seconds between lines if there is no terminal."""
_CPU_BOUND = 0.9
"""Share of one processor above which this process itself limits the rate: it sends requests from one thread."""


@contextmanager
def progress(spec: RunSpec, questions: int) -> Iterator[None]:
    """Show a run's progress by role on stderr: bars on a terminal, else a line every few seconds."""
    from malt.llm.client.session import latest_session
    from malt.trees.growth import nodes_per_question

    expected = {role: questions * nodes for role, nodes in nodes_per_question(spec).items()}
    done = threading.Event()
    show = _show_bars if console(stderr=True).is_terminal else _print_lines
    thread = threading.Thread(target=show, args=(expected, latest_session, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _count_completions(tally: "Tally", role: Role) -> int:
    return tally.roles[role].completions + tally.roles[role].cached_completions


class CpuMeter:
    """Meter of the share of one processor that this process used since the last reading."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> float:
        wall, cpu = time.monotonic(), time.process_time()
        share = (cpu - self._cpu) / max(wall - self._wall, 0.001)
        self._wall, self._cpu = wall, cpu
        return share


def limited_by(cpu_share: float, endpoints: Sequence[str]) -> str:
    """Return what limits the rate: `CPU` for this process itself, else what most of its endpoints wait for."""
    if cpu_share >= _CPU_BOUND:
        return "CPU"
    return Counter(endpoints).most_common(1)[0][0] if endpoints else "nothing"


def _show_bars(expected: dict[Role, int], find: "Callable[[], Session | None]", done: threading.Event) -> None:
    """Show one bar per role, with the rate of new completions and the time left, and a line on what limits the rate."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    meter, started, limit = CpuMeter(), time.monotonic(), Text("starting", style="dim")
    bars = Progress(*columns, console=console(stderr=True))
    with Live(Group(bars, limit), console=console(stderr=True), transient=True):
        tasks = {role: bars.add_task(role.value, total=total, rate="") for role, total in expected.items()}
        while not done.wait(_REFRESH_S):
            if (session := find()) is None:
                continue
            for role, task in tasks.items():
                rate = session.tally.roles[role].completions / (time.monotonic() - started)
                bars.update(task, completed=_count_completions(session.tally, role), rate=f"{rate:.1f}/s")
            limit.plain = f"limited by: {limited_by(meter.read(), session.throttled_by)}"


def _print_lines(expected: dict[Role, int], find: "Callable[[], Session | None]", done: threading.Event) -> None:
    meter = CpuMeter()
    while not done.wait(_PLAIN_EVERY_S):
        if (session := find()) is not None:
            counts = {role: _count_completions(session.tally, role) for role in expected}
            figures = ", ".join(f"{role.value} {counts[role]:,}/{total:,}" for role, total in expected.items())
            share = sum(counts.values()) / max(sum(expected.values()), 1)
            requests = f"{session.tally.total.requests:,} requests"
            warn(f"{share:.0%}: {figures}; {requests}; limited by: {limited_by(meter.read(), session.throttled_by)}")


# Training.


@contextmanager
def training_progress() -> "Iterator[Tell]":
    """Show a training's progress on stderr: one bar per stage on a terminal, else a line every few seconds."""
    if not console(stderr=True).is_terminal:
        yield _announcing(_Lines())
        return
    columns = (TextColumn("{task.description:<13}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns, console=console(stderr=True)) as bars:
        yield _announcing(_Bars(bars))


def _announcing(tell: "Tell") -> "Tell":
    """Return `tell`, preceded by a message about the process that a training waits for."""

    def announce(event: Mapping[str, Any]) -> None:
        if event["event"] == "waiting":
            warn(f"models {event['models']}: waiting for {event['holder']}")
        tell(event)

    return announce


class _Lines:
    """Prints a line at the first and last step of a stage, and every few seconds between."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "step":
            return
        is_edge = event["step"] in (1, event["steps"])
        if is_edge or time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            warn(f"{event['role']} {event['stage']} {event['step']}/{event['steps']}: {_describe_step(event)}")


class _Bars:
    """Shows one bar per role and stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._tasks = bars, dict[str, TaskID]()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            self._bars.update(self._find_bar(event), completed=event["step"], at=_describe_step(event))

    def _find_bar(self, event: Mapping[str, Any]) -> TaskID:
        name = f"{event['role']} {event['stage']}"
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=event["steps"], at="")
        return self._tasks[name]


def _describe_step(event: Mapping[str, Any]) -> str:
    left = f"{event['left_s']:.0f} s left" if event["left_s"] < 120 else f"{event['left_s'] / 60:.0f} min left"
    return f"loss {event['loss']:.4f}, {event['tokens_per_s']:,.0f} tokens/s, {left}"
