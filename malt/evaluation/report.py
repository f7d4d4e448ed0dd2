"""The report of an evaluation: one HTML file that loads nothing and runs nothing but its own viewer."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from malt.config.evaluate import Measure
from malt.config.roles import PLAYERS
from malt.datasets.pages.page import read_part, render_page
from malt.datasets.pages.sample import embed_json
from malt.evaluation.summarise import list_ways
from malt.evaluation.summary import Cell, Compared, Flips, Summary
from malt.evaluation.table import Sheet, make_sheets
from malt.evaluation.version import EvaluationManifest, EvaluationVersion
from malt.text import shorten

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = Path(__file__).parent


def render_report(manifest: EvaluationManifest, summary: Summary, answers: "pd.DataFrame") -> str:
    sheets = make_sheets(manifest.spec, answers, "chain")
    parted = _list_differing(sheets, summary.measure)
    gains, reach = place_gains(summary.differences)
    data = {"roles": PLAYERS, "systems": [*summary.systems], "baseline": summary.baseline, "questions": parted}
    return render_page(
        "report.html.jinja",
        read_style(),
        (_FOLDER / "report.js").read_text(encoding="utf-8"),
        _FOLDER,
        manifest=manifest,
        summary=summary,
        headline=summary.title,
        bars={
            name: [make_bar(title, cell, votes="vote" in title) for title, cell in system.cells(summary.chains)]
            for name, system in summary.systems.items()
        },
        gains=gains,
        reach=reach,
        segments={name: _list_segments(system.flips) for name, system in summary.systems.items()},
        points=_place_points(summary),
        smallest=summary.smallest_difference,
        parted=len(parted),
        data=Markup(embed_json(data).decode()),  # noqa: S704 - `embed_json` escapes
    )


def read_style() -> str:
    return read_part("marks.css") + read_part("page.css") + (_FOLDER / "report.css").read_text(encoding="utf-8")


def redraw_report(version: EvaluationVersion) -> str:
    return render_report(version.manifest, version.summary, version.answers)


# Rows and coordinates of the page's pictures. Lengths are percentages, so that pictures fit any width.


class _Bar(NamedTuple):
    """One accuracy with its interval, in percent."""

    title: str
    of: str
    """What is counted: `questions` for a vote, else `answers`."""
    percent: float | None
    low: float | None
    high: float | None
    questions: int


class Gain(NamedTuple):
    """A difference to the baseline, and the places of its interval and mean in the picture."""

    system: str
    compared: Compared
    low: float
    middle: float
    high: float


class _Segment(NamedTuple):
    """Share of a system's chains with one outcome of refinement."""

    kind: str
    chains: int
    percent: float


class _Point(NamedTuple):
    """A way of answering: its tokens and accuracy, and its place in the picture."""

    system: str
    way: str
    tokens: float
    accuracy: float
    """Percent."""
    x: float
    y: float
    on_frontier: bool


def make_bar(title: str, cell: Cell, votes: bool = False) -> _Bar:
    percent, low, high = (None if part is None else 100 * part for part in (cell.accuracy, cell.low, cell.high))
    return _Bar(title, "questions" if votes else "answers", percent, low, high, cell.questions)


def place_gains(differences: Mapping[str, Compared]) -> tuple[list[Gain], float]:
    """Place differences on an axis with zero in its middle; return also its reach to either side, in points."""
    ends = [abs(end) for found in differences.values() for end in (found.low, found.high)]
    reach = max(5.0, 5.0 * -(-100 * max(ends, default=0) // 5))

    def place(value: float) -> float:
        return 50 + 50 * 100 * value / reach

    return [
        Gain(name, found, place(found.low), place(found.difference), place(found.high))
        for name, found in differences.items()
    ], reach


def _list_segments(flips: Flips) -> list[_Segment]:
    kinds = ("right_to_right", "wrong_to_right", "right_to_wrong", "wrong_to_wrong")
    counts = {kind: getattr(flips, kind) for kind in kinds}
    whole = sum(counts.values())
    return [_Segment(kind, count, 100 * count / whole) for kind, count in counts.items() if whole]


def _place_points(summary: Summary) -> list[_Point]:
    """Place every way of answering by its tokens and its accuracy, and mark those on the frontier."""
    ways = list_ways(summary.systems, summary.chains, max(len(summary.seeds), 1))
    longest = max((way.tokens for way in ways), default=1.0) or 1.0
    chosen = {(way.system, way.way) for way in summary.frontier}
    return [
        _Point(
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


# The questions on which systems differ, with every system's texts, up to a size limit.

_ALL_BYTES = 3_000_000
"""Limit of all questions in one page, as estimated."""
_MOST_CHARACTERS = 1_200
"""Limit of each text."""


def _list_differing(sheets: Mapping[str, Sheet], measure: Measure) -> list[dict[str, Any]]:
    """Return the questions on which systems' scores differ, with all their chains, up to the size limit."""
    scores = {name: sheet.scores(measure) for name, sheet in sheets.items()}
    kept, size = [], 0
    for place, question_id in enumerate(next(iter(sheets.values())).questions):
        known = {name: float(own[place]) for name, own in scores.items() if own[place] == own[place]}
        if len(set(known.values())) < 2:
            continue
        entry = _write_question(sheets, place, question_id, known)
        size += len(str(entry))
        if size > _ALL_BYTES:
            break
        kept.append(entry)
    return kept


def _write_question(
    sheets: Mapping[str, Sheet], place: int, question_id: str, shares: Mapping[str, float]
) -> dict[str, Any]:
    first = next(iter(sheets.values()))
    row = first.rows[first.rows["question_id"] == question_id].iloc[0]
    return {
        "id": question_id,
        "question": shorten(row["question"], _MOST_CHARACTERS),
        "truth": shorten(row["ground_truth"], _MOST_CHARACTERS),
        "share": shares,
        "chains": {name: list(_list_chains(sheet, place)) for name, sheet in sheets.items()},
    }


def _list_chains(sheet: Sheet, place: int) -> Iterator[dict[str, Any]]:
    columns = {name: sheet.grid(name)[place].ravel() for name in (*PLAYERS, "answer", "outcome", "generator_outcome")}
    for chain in range(len(columns["outcome"])):
        yield {name: values[chain] and shorten(values[chain], _MOST_CHARACTERS) for name, values in columns.items()}
