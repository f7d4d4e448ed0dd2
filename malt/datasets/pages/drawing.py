"""Where the marks of the pictures go. Lengths are percent of the picture, so that it fits any width without scaling."""

from collections.abc import Sequence
from typing import NamedTuple

from malt.datasets.stats.figures import Flip, ValueBin

_GAP = 6.0
"""Between the right and the wrong half of a flip picture."""
_TALLEST = 86.0
"""Of a histogram's bars, so that there is room for numbers above."""


class _Span(NamedTuple):
    """A stretch of a column, from the top."""

    top: float
    height: float

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


class _Ribbon(NamedTuple):
    """Answers on their way from one side to the other."""

    flip: Flip
    path: str
    """In a square of 100 by 100."""


class Column(NamedTuple):
    """One side of a flip picture."""

    right: _Span
    wrong: _Span
    right_leaves: int
    wrong_leaves: int


class _FlipPicture(NamedTuple):
    """Answers before and after, and the ribbons between."""

    before: Column
    after: Column
    ribbons: tuple[_Ribbon, ...]


class _HistogramBar(NamedTuple):
    """A histogram's bar, right above wrong."""

    bin: ValueBin
    left: float
    right: _Span
    wrong: _Span


def draw_flips(flips: Sequence[Flip]) -> _FlipPicture | None:
    """Lay out the flips, given in the order right to right, right to wrong, wrong to right, wrong to wrong."""
    if not flips:
        return None
    kept, broken, fixed, missed = (flip.leaves for flip in flips)
    before, after = _column(kept + broken, fixed + missed), _column(kept + fixed, broken + missed)
    scale = (100 - _GAP) / (kept + broken + fixed + missed)
    starts = before.right.top, before.right.top + kept * scale, before.wrong.top, before.wrong.top + fixed * scale
    ends = after.right.top, after.wrong.top, after.right.top + kept * scale, after.wrong.top + broken * scale
    paths = [
        _ribbon_path(start, end, flip.leaves * scale) for flip, start, end in zip(flips, starts, ends, strict=True)
    ]
    ribbons = (_Ribbon(flip, path) for flip, path in zip(flips, paths, strict=True) if flip.leaves)
    return _FlipPicture(before, after, tuple(ribbons))


def _column(right: int, wrong: int) -> Column:
    scale = (100 - _GAP) / (right + wrong)
    return Column(_Span(0, right * scale), _Span(right * scale + _GAP, wrong * scale), right, wrong)


def _ribbon_path(start: float, end: float, height: float) -> str:
    down, up = end + height, start + height
    return f"M0,{start:.2f}C50,{start:.2f} 50,{end:.2f} 100,{end:.2f}V{down:.2f}C50,{down:.2f} 50,{up:.2f} 0,{up:.2f}Z"


def draw_histogram(bins: Sequence[ValueBin]) -> list[_HistogramBar]:
    highest = max((each.right + each.wrong for each in bins), default=0) or 1
    return [_bar(each, place * 100 / len(bins), _TALLEST / highest) for place, each in enumerate(bins)]


def _bar(each: ValueBin, left: float, scale: float) -> _HistogramBar:
    right, wrong = each.right * scale, each.wrong * scale
    return _HistogramBar(each, left, _Span(100 - wrong - right, right), _Span(100 - wrong, wrong))
