"""What the report draws, as rows and places. Lengths are percent of the picture, so that it fits any width."""

from typing import NamedTuple

from malt.evaluation.frontier import list_ways
from malt.evaluation.summary import MEASURES, TITLES, Cell, Compared, Flips, Summary, SystemSummary


class Bar(NamedTuple):
    """One accuracy with its interval, in percent."""

    title: str
    of: str
    """`questions` for a vote, else `answers`."""
    percent: float | None
    low: float | None
    high: float | None
    questions: int


class Gain(NamedTuple):
    """A difference to the baseline in points, and where it stands in its picture."""

    system: str
    compared: Compared
    low: float
    middle: float
    high: float


class Segment(NamedTuple):
    """A share of a system's chains by what refinement made of them."""

    kind: str
    chains: int
    percent: float


class Point(NamedTuple):
    """A way of answering: what it takes, and how often it is right."""

    system: str
    way: str
    tokens: float
    accuracy: float
    """Percent."""
    x: float
    y: float
    on_frontier: bool


def list_bars(system: SystemSummary, chains: int) -> list[Bar]:
    """Return all accuracies of a system."""
    bars = [make_bar(write_title(measure, chains), getattr(system, measure), is_vote(measure)) for measure in MEASURES]
    if system.equal_tokens is not None:
        title = f"single agent, vote of {system.equal_tokens.votes}: as many tokens as the pipeline"
        bars.append(make_bar(title, system.equal_tokens.vote, votes=True))
    if system.control is not None:
        at = f"at temperature {system.control.temperature:g}"
        bars += [make_bar(f"single agent {at}", system.control.sa), make_bar(f"pipeline {at}", system.control.ma)]
    return bars


def write_title(measure: str, chains: int) -> str:
    """Say which answers are counted."""
    return f"{TITLES[measure]} of {chains}" if is_vote(measure) else TITLES[measure]


def is_vote(measure: str) -> bool:
    """Whether votes are counted, rather than single answers."""
    return measure.endswith("_mv")


def make_bar(title: str, cell: Cell, votes: bool = False) -> Bar:
    """Return one accuracy in percent."""
    percent, low, high = (None if part is None else 100 * part for part in (cell.accuracy, cell.low, cell.high))
    return Bar(title, "questions" if votes else "answers", percent, low, high, cell.questions)


def place_gains(summary: Summary) -> list[Gain]:
    """Place the differences to the baseline on one axis with zero in its middle."""
    reach = find_reach(summary)

    def place(value: float) -> float:
        return 50 + 50 * 100 * value / reach

    return [
        Gain(name, found, place(found.low), place(found.difference), place(found.high))
        for name, found in summary.differences.items()
    ]


def find_reach(summary: Summary) -> float:
    """Return how many points the axis of differences reaches to either side."""
    ends = [abs(end) for found in summary.differences.values() for end in (found.low, found.high)]
    return max(5.0, 5.0 * -(-100 * max(ends, default=0) // 5))


def list_segments(flips: Flips) -> list[Segment]:
    """Return what refinement made of the chains, right ones first."""
    kinds = ("right_to_right", "wrong_to_right", "right_to_wrong", "wrong_to_wrong")
    counts = {kind: getattr(flips, kind) for kind in kinds}
    whole = sum(counts.values())
    return [Segment(kind, count, 100 * count / whole) for kind, count in counts.items() if whole]


def place_points(summary: Summary) -> list[Point]:
    """Place every way of answering by its tokens and its accuracy, and say which nothing beats at its price."""
    ways = list_ways(summary.systems, summary.chains, max(len(summary.seeds), 1))
    longest = max((way.tokens for way in ways), default=1.0) or 1.0
    chosen = {(way.system, way.way) for way in summary.frontier}
    return [
        Point(
            way.system,
            way.way,
            way.tokens,
            100 * (way.cell.accuracy or 0.0),
            96 * way.tokens / longest,
            100 - 100 * (way.cell.accuracy or 0.0),
            (way.system, way.way) in chosen,
        )
        for way in ways
    ]
