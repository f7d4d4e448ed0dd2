"""The card and the report of a version: written when it is published, and drawn anew from its rows. Streams."""

from pathlib import Path
from typing import cast

from malt.datasets.manifest import Manifest
from malt.datasets.pages.card import render_card
from malt.datasets.pages.page import REPORT_FILE, render_report
from malt.datasets.pages.sample import TreeSample
from malt.datasets.rows.tables import QUESTIONS_FILE, TRAJECTORIES_FILE, QuestionRow, TrajectoryRow
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import Cursor, failures_by_question, parquet_rows, reading

CARD_FILE = "README.md"


def render_pages(manifest: Manifest, trees: TreeSample) -> dict[str, str]:
    """Write the pages of a version by their names, from what its manifest says of rows and from some trees."""
    return {CARD_FILE: render_card(manifest), REPORT_FILE: render_report(manifest, trees.chosen)}


def report_file(version: DatasetVersion, out: Path | None = None) -> Path:
    """Return the report that lies in a version's folder; with `out`, or where none lies there, draw one anew.

    Without `out` that is `NAME-vN-report.html` in the current folder: nothing is added to a version.
    Raises `VersionError` where its rows cannot be read.
    """
    published = version.path / REPORT_FILE
    if out is None and published.is_file():
        return published
    drawn = (out or Path(f"{version.name}-v{version.number}-{REPORT_FILE}")).resolve()
    drawn.write_text(redraw_report(version), encoding="utf-8")
    return drawn


def redraw_report(version: DatasetVersion) -> str:
    """Draw a version's report from its manifest and its rows."""
    with reading(version.path):
        sample = _sample_trees(version)
    return render_report(version.manifest, sample.chosen)


def _sample_trees(version: DatasetVersion) -> TreeSample:
    """Choose trees as publishing did: from the questions in their order, and the failures that the manifest names."""
    sample, failures = TreeSample(), failures_by_question(version)
    nodes = Cursor(parquet_rows(version.path / TRAJECTORIES_FILE))
    for row in parquet_rows(version.path / QUESTIONS_FILE):
        question = cast(QuestionRow, row)
        question_id = question["question_id"]
        sample.add(question, cast("list[TrajectoryRow]", nodes.take(question_id)), failures.get(question_id, ()))
    return sample
