"""How far a run is, shown on stderr while it runs, and what holds it back."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from malt.cli.console.terminal import err
from malt.config.spec import Role, RunSpec

if TYPE_CHECKING:
    from malt.llm.client.session import Session
    from malt.llm.usage import Tally

REFRESH_S = 0.5
PLAIN_EVERY_S = 10.0
"""How often a line is printed where there is no terminal."""
MOST_BUSY = 0.9
"""Share of a processor from which on this process's own work is what takes the time: it asks from one thread."""


@contextmanager
def progress(spec: RunSpec, questions: int) -> Iterator[None]:
    """Show on stderr how far a run is, by role: a bar on a terminal, a line now and then elsewhere."""
    from malt.trees.growth import nodes_per_question

    expected = {role: questions * nodes for role, nodes in nodes_per_question(spec).items()}
    done = threading.Event()
    shown = show_bars if err.is_terminal else print_lines
    thread = threading.Thread(target=shown, args=(expected, lambda: session_of(spec), done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def session_of(spec: RunSpec) -> "Session | None":
    """Return this process's session, once there is one."""
    from malt.config.settings import Settings
    from malt.llm.client.session import opened_session

    return opened_session(Settings(), spec.limits)


def had(tally: "Tally", role: Role) -> int:
    """Completions one role has given, bought or stored."""
    return tally.roles[role].completions + tally.roles[role].cached_completions


class Busy:
    """How much of one processor this process used since the last look."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def share(self) -> float:
        """Look, and begin anew."""
        wall, cpu = time.monotonic(), time.process_time()
        share = (cpu - self._cpu) / max(wall - self._wall, 0.001)
        self._wall, self._cpu = wall, cpu
        return share


def held_back_by(busy: float, endpoints: Sequence[str]) -> str:
    """Say what holds the rate back: this process's own work, else what most of its endpoints wait for."""
    if busy >= MOST_BUSY:
        return "CPU"
    return Counter(endpoints).most_common(1)[0][0] if endpoints else "nothing"


def show_bars(expected: dict[Role, int], session: "Callable[[], Session | None]", done: threading.Event) -> None:
    """Keep a bar a role, with the rate of new completions and the time that is left, and what holds the rate back."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    busy, started = Busy(), time.monotonic()
    with Progress(*columns, console=err, transient=True) as bars:
        tasks = {role: bars.add_task(role.value, total=total, rate="") for role, total in expected.items()}
        while not done.wait(REFRESH_S):
            if (opened := session()) is None:
                continue
            for role, task in tasks.items():
                rate = opened.tally.roles[role].completions / (time.monotonic() - started)
                bars.update(task, completed=had(opened.tally, role), rate=f"{rate:.1f}/s")
            bars.update(task, rate=f"{rate:.1f}/s, held back by {held_back_by(busy.share(), opened.held_by)}")


def print_lines(expected: dict[Role, int], session: "Callable[[], Session | None]", done: threading.Event) -> None:
    """Print a line every few seconds."""
    busy = Busy()
    while not done.wait(PLAIN_EVERY_S):
        if (opened := session()) is not None:
            counted = opened.tally
            figures = ", ".join(f"{role.value} {had(counted, role):,}/{total:,}" for role, total in expected.items())
            held = held_back_by(busy.share(), opened.held_by)
            err.print(f"{figures}; {counted.total.requests:,} requests; held back by {held}")
