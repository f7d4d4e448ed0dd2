"""Prints what kill -9 leaves of a dataset: `python -m benchmarks.faults.publishing [MOMENTS [SEED]]`.

A publisher, a removal and the move of a tag are killed at random moments, each in a process of its own, over and over
in one folder. It ends with an error where a version is lost, a link names nothing, what was left does not go, or, after
all, a version does not verify.
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
"""How much longer work may take in a process of its own, which begins cold."""
PRACTICE = 5
"""Times that work is done in peace, to learn how long it takes."""


class Plan(NamedTuple):
    """One piece of work to be killed."""

    work: Work
    arguments: tuple[object, ...]
    is_done: Callable[[], bool]
    """Whether the folder shows it."""


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
    """Return how long the work takes in peace."""
    took = []
    for number in range(PRACTICE):
        work, arguments, is_done = plan(folder, f"peace {number}")
        started = time.perf_counter()
        work(*arguments)
        took.append(time.perf_counter() - started)
        assert is_done()
    return median(took)


def torment(plan: Callable[[Path, str], Plan], folder: Path, moments: int, random: Random) -> str:
    """Kill the work at random moments, and return the row of the table."""
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
            print(f"| {name} | {torment(plan, Path(folder), moments, Random(seed))} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
