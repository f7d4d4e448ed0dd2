"""Report as one HTML file that loads nothing and runs only its own viewer, whatever text the models wrote.

Figures are inline SVG drawn by the template, not by a plotting library: they follow the reader's width, theme and
fonts, their numbers stay text, and all of them together weigh a few kilobytes.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from malt.config.roles import TRAJECTORY
from malt.datasets.manifest import Manifest
from malt.datasets.measures import Values
from malt.datasets.pages.sample import TreeSample, embed_json, group_failures
from malt.datasets.stats import figures
from malt.datasets.stats.figures import Flip
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import question_nodes, reading
from malt.sanitize import escape_controls

_FOLDER = Path(__file__).parent


def render_report(manifest: Manifest, trees: Sequence[bytes]) -> str:
    """Render the report from the manifest's figures and the trees that a `TreeSample` chose."""
    style, script = read_part("marks.css") + read_part("page.css"), read_part("viewer.js")
    measures, mix = list(figures.measure_accuracy(manifest)), figures.list_mix(manifest)
    return render_page(
        "page.html.jinja",
        style,
        script,
        **_draw_all(manifest),
        manifest=manifest,
        vote=measures[-2],
        mixed=next(each for each in mix if each.kind == "mixed"),
        flips=figures.list_flips(manifest),
        mix=mix,
        shown=len(trees),
        texts=[part.text for part in TRAJECTORY],
        data=_embed_trees(manifest, trees),
    )


def render_page(template: str, style: str, script: str = "", *folders: Path, **values: object) -> str:
    """Fill a page's template. Its content security policy allows this style and this script only."""
    ours = {"style": Markup(style), "script": Markup(script)}  # noqa: S704
    policy = _write_policy(style, script)
    return page_environment(*folders).get_template(template).render(**ours, policy=policy, **values)


def _write_policy(style: str, script: str) -> str:
    allowed = f"style-src '{_hash_source(style)}'; script-src '{_hash_source(script)}'; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def render_picture(manifest: Manifest) -> str:
    """Draw accuracy, flips and values as one self-contained SVG with its own background."""
    style = Markup(read_part("marks.css"))  # noqa: S704 - ours
    return page_environment().get_template("picture.svg.jinja").render(**_draw_all(manifest), style=style)


def redraw_report(version: DatasetVersion) -> str:
    """Render a version's report from its manifest and its rows. Raises `VersionError` if they cannot be read."""
    sample, failures = TreeSample(), group_failures(version.manifest)
    with reading(version.path):
        for question, nodes in question_nodes(version):
            sample.add(question, nodes, failures.get(question["question_id"], ()))
    return render_report(version.manifest, sample.chosen)


def _draw_all(manifest: Manifest) -> dict[str, object]:
    """Return the template values that page and picture share."""
    return {
        "spec": manifest.spec,
        "measures": list(figures.measure_accuracy(manifest)),
        "flip_picture": draw_flips(figures.list_flips(manifest)),
        "values": {role: draw_histogram(found) for role, found in manifest.diagnostics.values.items()},
    }


def read_part(name: str) -> str:
    """Read a style or a script that pages share."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def _embed_trees(manifest: Manifest, trees: Sequence[bytes]) -> Markup:
    asked, texts = manifest.counts.questions, [part.text for part in TRAJECTORY]
    about = {"version": manifest.reference, "asked": asked, "texts": texts}
    head = embed_json(about).decode().removesuffix("}")
    return Markup(f'{head},"trees":[{b",".join(trees).decode()}]}}')  # noqa: S704 - `embed_json` escapes


def _hash_source(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def page_environment(*folders: Path) -> Environment:
    """Return the environment of the page templates, also those in `folders`; it makes control characters visible."""
    made = Environment(
        loader=FileSystemLoader([*folders, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape_controls(value) if type(value) is str else value,
    )
    made.filters |= {
        "count": figures.format_count,
        "share": figures.format_share,
        "dollars": figures.format_dollars,
        "compact": shorten_number,
        "points": _format_points,
    }
    return made


def shorten_number(number: int) -> str:
    for least, unit, letter in ((999_500, 1_000_000, "M"), (1_000, 1_000, "k")):
        if number >= least:
            return f"{number / unit:.3g} {letter}"
    return str(number)


def _format_points(number: float) -> str:
    """Write a difference of two percentages, with a real minus sign."""
    return f"{number:+.1f}".replace("-", "\N{MINUS SIGN}")


_GAP = 6.0
"""Gap between the right and the wrong half of a flip picture, in % of its height."""
_TALLEST = 86.0
"""Height of a histogram's highest bar, in % of the picture: leaves room for the numbers above."""


class _Span(NamedTuple):
    """Vertical section of a column, measured from the top."""

    top: float
    height: float

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


class _Ribbon(NamedTuple):
    """Band of a flip picture: answers with the same grade before and the same grade after."""

    flip: Flip
    path: str
    """SVG path in a square of 100 by 100."""


class Column(NamedTuple):
    """One side of a flip picture."""

    right: _Span
    wrong: _Span
    right_leaves: int
    wrong_leaves: int


class _FlipPicture(NamedTuple):
    """Columns of the answers before and after, and the ribbons between them."""

    before: Column
    after: Column
    ribbons: tuple[_Ribbon, ...]


class _HistogramBar(NamedTuple):
    """Bar of a histogram, the right texts above the wrong ones."""

    texts: int
    left: float
    right: _Span
    wrong: _Span


def draw_flips(flips: Sequence[Flip]) -> _FlipPicture | None:
    """Lay out the flips. They must come in the order right→right, right→wrong, wrong→right, wrong→wrong."""
    if not flips:
        return None
    kept, broken, fixed, missed = (flip.leaves for flip in flips)
    before, after = _column(kept + broken, fixed + missed), _column(kept + fixed, broken + missed)
    scale = (100 - _GAP) / (kept + broken + fixed + missed)
    starts = before.right.top, before.right.top + kept * scale, before.wrong.top, before.wrong.top + fixed * scale
    ends = after.right.top, after.wrong.top, after.right.top + kept * scale, after.wrong.top + broken * scale
    ribbons = (
        _Ribbon(flip, _ribbon_path(start, end, flip.leaves * scale))
        for flip, start, end in zip(flips, starts, ends, strict=True)
        if flip.leaves
    )
    return _FlipPicture(before, after, tuple(ribbons))


def _column(right: int, wrong: int) -> Column:
    scale = (100 - _GAP) / (right + wrong)
    return Column(_Span(0, right * scale), _Span(right * scale + _GAP, wrong * scale), right, wrong)


def _ribbon_path(start: float, end: float, height: float) -> str:
    down, up = end + height, start + height
    return f"M0,{start:.2f}C50,{start:.2f} 50,{end:.2f} 100,{end:.2f}V{down:.2f}C50,{down:.2f} 50,{up:.2f} 0,{up:.2f}Z"


def draw_histogram(values: Values) -> list[_HistogramBar]:
    highest = max(map(sum, zip(values.right, values.wrong, strict=True)), default=0) or 1
    scale = _TALLEST / highest
    bars = []
    for place, (right, wrong) in enumerate(zip(values.right, values.wrong, strict=True)):
        spans = _Span(100 - wrong * scale - right * scale, right * scale), _Span(100 - wrong * scale, wrong * scale)
        bars.append(_HistogramBar(right + wrong, place * 100 / len(values.right), *spans))
    return bars
