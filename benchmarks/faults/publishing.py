"""Prints the state of a dataset after kill -9: `python -m benchmarks.faults.publishing [MOMENTS [SEED]]`.

A publisher, a removal and the move of a tag are killed at random moments, each in a separate process, repeatedly
in one folder. The script fails if a version is lost, a link dangles, leftovers are not cleaned up, or, at the end, a
version does not verify.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from malt.datasets.version.folders import linked_numbers, version_numbers
from tests.crashing import Work, check_whole, killed_after, move_tag, remove
from tests.published import publish_small

SLOWER = 2
"""Factor by which work may take longer in a new process, whose caches are cold."""
PRACTICE = 5
"""Number of undisturbed repetitions, to measure how long the work takes."""


class Plan(NamedTuple):
    """One piece of work to be killed."""

    work: Work
    arguments: tuple[object, ...]
    is_done: Callable[[], bool]
    """Whether the folder shows the result of the work."""


def publishing(folder: Path, name: str) -> Plan:
    newest = version_numbers(folder / "arith")[-1]
    return Plan(publish_small, (folder, name), lambda: version_numbers(folder / "arith")[-1] > newest)


def removing(folder: Path, name: str) -> Plan:
    doomed = publish_small(folder, name).number
    publish_small(folder, f"after {name}")
    return Plan(remove, (folder, f"arith@v{doomed}"), lambda: doomed not in version_numbers(folder / "arith"))


def tagging(folder: Path, name: str) -> Plan:
    number = publish_small(folder, name).number
    return Plan(move_tag, (folder, "tag", number), lambda: linked_numbers(folder / "arith").get("tag") == number)


def seconds_of(plan: Callable[[Path, str], Plan], folder: Path) -> float:
    """Return the median duration of undisturbed work."""
    took = []
    for number in range(PRACTICE):
        work, arguments, is_done = plan(folder, f"peace {number}")
        started = time.perf_counter()
        work(*arguments)
        took.append(time.perf_counter() - started)
        assert is_done()
    return median(took)


def kill_repeatedly(plan: Callable[[Path, str], Plan], folder: Path, moments: int, random: Random) -> str:
    """Kill the work at random moments; return its row of the table."""
    publish_small(folder, "first")
    longest, killed, done = seconds_of(plan, folder), 0, 0
    for moment in range(moments):
        work, arguments, is_done = plan(folder, f"war {moment}")
        before = version_numbers(folder / "arith")
        killed += killed_after(random.uniform(0, SLOWER * longest), work, *arguments)
        done += is_done()
        lost = set(before) - set(version_numbers(folder / "arith"))
        assert len(lost) == (work is remove and is_done()), f"lost {lost}"
        assert set(linked_numbers(folder / "arith").values()) <= set(version_numbers(folder / "arith")), (
            "a link to nowhere"
        )
    newest = publish_small(folder, "last").number
    whole = check_whole(folder, newest)
    assert linked_numbers(folder / "arith")["latest"] == newest == whole[-1]
    assert not list((folder / "arith").glob(".tmp-*")), "something unfinished was left"
    return f"{longest * 1000:.0f} | {killed} | {moments - done} | {done} | {len(whole)}"


def main(moments: int = 50, seed: int = 4711) -> None:
    """Print the table."""
    print("| work | ms in peace | killed | old state | new state | versions, all verified |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, plan in (("publish", publishing), ("rm", removing), ("tag --move", tagging)):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {kill_repeatedly(plan, Path(folder), moments, Random(seed))} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
