"""The report as a page: one HTML file that loads nothing and runs nothing but its own viewer, whatever models wrote.

Figures are inline SVG drawn by the template, not by a plotting library: they follow the reader's width, theme and
fonts, their numbers stay text, and all of them together weigh a few kilobytes.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from malt.datasets.manifest import Manifest
from malt.datasets.pages import figures
from malt.datasets.pages.drawing import flip_picture, histogram
from malt.datasets.pages.sample import embeddable
from malt.sanitize import visible

FOLDER = Path(__file__).parent
REPORT_FILE = "report.html"


def render_report(manifest: Manifest, trees: Sequence[bytes]) -> str:
    """Write the page, from what the manifest counts and the trees that a `TreeSample` chose."""
    style, script = read("marks.css") + read("page.css"), read("viewer.js")
    measures, flips, mix = figures.accuracy(manifest), figures.flips(manifest), figures.mix(manifest)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            **drawn(manifest),
            manifest=manifest,
            asked=figures.asked(manifest),
            named={each.measure: each for each in measures} | {each.kind: each for each in mix},
            flips=flips,
            mix=mix,
            yields=figures.yields(manifest),
            losses=figures.losses(manifest),
            used=figures.used(manifest),
            shown=len(trees),
            style=Markup(style),  # noqa: S704 - ours
            script=Markup(script),  # noqa: S704 - ours
            policy=policy(style, script),
            data=embedded(manifest, trees),
        )
    )


def render_picture(manifest: Manifest) -> str:
    """Draw accuracy, flips and values as one SVG that stands alone, on a ground of its own."""
    style = Markup(read("marks.css"))  # noqa: S704 - ours
    return environment().get_template("picture.svg.jinja").render(**drawn(manifest), style=style)


def drawn(manifest: Manifest) -> dict[str, object]:
    """What page and picture both show."""
    values = groupby(figures.values(manifest), key=lambda each: each.role)
    return {
        "spec": manifest.spec,
        "measures": figures.accuracy(manifest),
        "flip_picture": flip_picture(figures.flips(manifest)),
        "values": {role: histogram(list(bins)) for role, bins in values},
    }


def read(name: str) -> str:
    """Read a part of the page."""
    return (FOLDER / name).read_text(encoding="utf-8")


def embedded(manifest: Manifest, trees: Sequence[bytes]) -> Markup:
    """Write the data of the tree viewer as JSON that may stand in a script element."""
    about = {"version": f"{manifest.name}@v{manifest.version}", "asked": manifest.counts.questions}
    head = embeddable(about).decode().removesuffix("}")
    return Markup(f'{head},"trees":[{b",".join(trees).decode()}]}}')  # noqa: S704 - `embeddable` escapes


def policy(style: str, script: str) -> str:
    """Allow this style and this script, and nothing else."""
    return (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def source_hash(text: str) -> str:
    """Name a text as a Content-Security-Policy does."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def environment() -> Environment:
    """Escapes whatever it fills in; knows how numbers are written."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown_plainly,
    )
    made.filters |= {"count": count, "compact": compact, "share": share, "dollars": dollars, "points": points}
    return made


def shown_plainly(value: object) -> object:
    """Show a name that others chose without what would turn or hide text."""
    return visible(value) if type(value) is str else value


def count(number: int | None) -> str:
    """Write a whole number; one that is not known is never zero."""
    return "unknown" if number is None else f"{number:,}"


def compact(number: int) -> str:
    """Write a whole number in few signs."""
    for least, unit, letter in ((999_500, 1_000_000, "M"), (1_000, 1_000, "k")):
        if number >= least:
            return f"{number / unit:.3g} {letter}"
    return str(number)


def share(percent: float | None) -> str:
    """Write a share."""
    return "n/a" if percent is None else f"{percent:.1f} %"


def points(number: float) -> str:
    """Write a difference of two shares, with a real minus sign."""
    return f"{number:+.1f}".replace("-", "\N{MINUS SIGN}")


def dollars(usd: float | None) -> str:
    """Write a cost; one that is not known is never zero."""
    return "unknown" if usd is None else f"${usd:,.4f}" if usd < 1 else f"${usd:,.2f}"
