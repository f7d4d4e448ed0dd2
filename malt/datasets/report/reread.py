"""The report of a version that is there already, drawn anew from its rows. Streams: one question's rows at a time."""

import itertools
from collections.abc import Iterator
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from malt.datasets.examples import QuestionRow, TrajectoryRow
from malt.datasets.manifest import Failure
from malt.datasets.report.page import render_report
from malt.datasets.report.sample import TreeSample
from malt.datasets.tables import QUESTIONS_FILE, TRAJECTORIES_FILE
from malt.datasets.version import DatasetVersion
from malt.errors import VersionError

READ_ROWS = 1_000


def redraw(version: DatasetVersion) -> str:
    """Draw a version's report. Raises `VersionError` where its rows cannot be read."""
    try:
        return render_report(version.manifest, sample_of(version).chosen)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise VersionError(f"{version.path} cannot be read ({error}); try: malt verify {version.path}") from error


def sample_of(version: DatasetVersion) -> TreeSample:
    """Choose trees as publishing did: from the questions in their order, and the failures that the manifest names."""
    sample, failures = TreeSample(), failures_by_question(version)
    trees = itertools.groupby(rows(version, TRAJECTORIES_FILE), key=lambda row: row["question_id"])
    for row in rows(version, QUESTIONS_FILE):
        question = cast(QuestionRow, row)
        nodes: list[TrajectoryRow] = []
        if question["complete"]:
            _, found = next(trees)
            nodes = [cast(TrajectoryRow, node) for node in found]
        sample.add(question, nodes, failures.get(question["question_id"], ()))
    return sample


def failures_by_question(version: DatasetVersion) -> dict[str, list[Failure]]:
    """The failed branches that the manifest names."""
    failures: dict[str, list[Failure]] = {}
    for failure in version.manifest.failures:
        failures.setdefault(failure.question_id, []).append(failure)
    return failures


def rows(version: DatasetVersion, file: str) -> Iterator[dict[str, object]]:
    """Read a file row by row."""
    with pq.ParquetFile(version.path / file) as parquet:
        for batch in parquet.iter_batches(batch_size=READ_ROWS):
            yield from batch.to_pylist()
