"""The report of an evaluation: one HTML file that loads nothing and runs nothing but its own viewer."""

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from malt.datasets.pages.page import content_policy, page_environment, read_part
from malt.datasets.pages.sample import embed_json
from malt.evaluation import drawing
from malt.evaluation.manifest import EvaluationManifest
from malt.evaluation.parted import parted_questions
from malt.evaluation.sheet import make_sheets
from malt.evaluation.summary import TITLES, Summary
from malt.evaluation.version import EvaluationVersion

if TYPE_CHECKING:
    import pandas as pd

REPORT_FILE = "report.html"
FOLDER = Path(__file__).parent


def render_report(manifest: EvaluationManifest, summary: Summary, answers: "pd.DataFrame") -> str:
    """Write the page."""
    style = read_part("marks.css") + read_part("page.css") + (FOLDER / "report.css").read_text(encoding="utf-8")
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    sheets = make_sheets(manifest.spec, answers, "chain")
    parted = parted_questions(sheets, summary.measure)
    data = {"systems": [*summary.systems], "baseline": summary.baseline, "questions": parted}
    return (
        page_environment(FOLDER)
        .get_template("report.html.jinja")
        .render(
            manifest=manifest,
            summary=summary,
            headline=TITLES[summary.measure],
            bars={name: drawing.list_bars(system, summary.chains) for name, system in summary.systems.items()},
            gains=drawing.place_gains(summary),
            reach=drawing.find_reach(summary),
            segments={name: drawing.list_segments(system.flips) for name, system in summary.systems.items()},
            points=drawing.place_points(summary),
            smallest=summary.smallest_difference,
            parted=len(parted),
            style=Markup(style),  # noqa: S704 - ours
            script=Markup(script),  # noqa: S704 - ours
            policy=content_policy(style, script),
            data=Markup(embed_json(data).decode()),  # noqa: S704 - `embed_json` escapes
        )
    )


def find_report(version: EvaluationVersion, out: Path | None = None) -> Path:
    """Return the report that lies in a version's folder; with `out`, draw it anew there."""
    if out is None:
        return version.path / REPORT_FILE
    out.write_text(render_report(version.manifest, version.summary, version.answers), encoding="utf-8")
    return out
