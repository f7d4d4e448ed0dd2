"""The report of a version that is there already, drawn anew from its rows. Streams: one question's rows at a time."""

from pathlib import Path
from typing import cast

import pyarrow as pa

from malt.datasets.manifest import Failure
from malt.datasets.pages.page import REPORT_FILE, render_report
from malt.datasets.pages.sample import TreeSample
from malt.datasets.rows.examples import QuestionRow, TrajectoryRow
from malt.datasets.rows.tables import QUESTIONS_FILE, TRAJECTORIES_FILE
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import Cursor, parquet_rows
from malt.errors import VersionError


def report_file(version: DatasetVersion, out: Path | None = None) -> Path:
    """Return the report that lies in a version's folder; with `out`, or where none lies there, draw one anew.

    Without `out` that is `NAME-vN-report.html` in the current folder: nothing is added to a version.
    Raises `VersionError` where its rows cannot be read.
    """
    published = version.path / REPORT_FILE
    if out is None and published.is_file():
        return published
    drawn = (out or Path(f"{version.name}-v{version.number}-{REPORT_FILE}")).resolve()
    drawn.write_text(redraw(version), encoding="utf-8")
    return drawn


def redraw(version: DatasetVersion) -> str:
    """Draw a version's report from its manifest and its rows."""
    try:
        sample = sample_of(version)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise VersionError(f"{version.path} cannot be read ({error}); try: malt verify {version.path}") from error
    return render_report(version.manifest, sample.chosen)


def sample_of(version: DatasetVersion) -> TreeSample:
    """Choose trees as publishing did: from the questions in their order, and the failures that the manifest names."""
    sample, failures = TreeSample(), failures_by_question(version)
    nodes = Cursor(parquet_rows(version.path / TRAJECTORIES_FILE))
    for row in parquet_rows(version.path / QUESTIONS_FILE):
        question = cast(QuestionRow, row)
        question_id = question["question_id"]
        sample.add(question, cast("list[TrajectoryRow]", nodes.take(question_id)), failures.get(question_id, ()))
    return sample


def failures_by_question(version: DatasetVersion) -> dict[str, list[Failure]]:
    """The failed branches that the manifest names."""
    failures: dict[str, list[Failure]] = {}
    for failure in version.manifest.failures:
        failures.setdefault(failure.question_id, []).append(failure)
    return failures
