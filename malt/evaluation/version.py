"""Evaluation versions: their manifests, opening and listing them. They are beside datasets, in `evaluations/`."""

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc

from malt.config.base import Recorded
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.manifest import AskedManifest, read_as
from malt.datasets.version.dataset_version import Listed, list_opened, locate
from malt.datasets.version.published import Published
from malt.datasets.version.reading import reading
from malt.errors import VersionError
from malt.evaluation.summary import MEASURES, Summary
from malt.evaluation.table import ANSWERS_FILE, make_frame, read_answers
from malt.sanitize import escape_controls

if TYPE_CHECKING:
    import pandas as pd

SHELF = "evaluations"
SUMMARY_FILE = "summary.json"


class Player(Recorded):
    """Model that played a role in a system."""

    model: str
    digest: str | None
    """Digest of the model's weights; None for a model that is only known by its name."""
    sampling: dict[str, Any]
    """Settings that shape its texts besides the prompt: temperature, tokens, seed."""


class EvaluationManifest(AskedManifest):
    """Manifest of one evaluation version."""

    kind: Literal["evaluations"] = "evaluations"
    models: dict[str, dict[str, Player]]
    """Players by system, then by the roles that take part."""
    grader: tuple[str, ...]
    """Kinds of graders, the judge's model last where one is asked."""


@dataclass(frozen=True)
class EvaluationVersion(Published[EvaluationManifest]):
    """One immutable evaluation on disk."""

    @property
    def spec(self) -> RunSpec:
        """Config that the version was made with. Raises `VersionError` where this release cannot read it."""
        return self.manifest.spec

    @cached_property
    def summary(self) -> Summary:
        """Figures of the version. Raises `VersionError` where they cannot be read."""
        path = self.path / SUMMARY_FILE
        with reading(self.path, str(path)):
            return Summary.model_validate_json(path.read_bytes())

    @property
    def figures(self) -> "pd.DataFrame":
        """One row a system and way of answering: accuracy with its 95 % interval, and difference to the baseline."""
        import pandas as pd

        return pd.DataFrame(
            {"system": name, "measure": measure, **getattr(system, measure).model_dump()}
            | {f"over_{self.summary.baseline}": over.difference if (over := differences.get(name)) else None}
            for name, system in self.summary.systems.items()
            for measure in MEASURES
            for differences in [self.summary.all_differences.get(measure, {})]
        )

    def _repr_html_(self) -> str:
        """Return the figures for a notebook, with the systems' names escaped."""
        title = f"<h3>{html.escape(self.reference)}</h3>"
        return escape_controls(title + self.figures.to_html(index=False, border=0, float_format="{:.3f}".format))

    @property
    def answers(self) -> "pd.DataFrame":
        """One row for each chain."""
        return make_frame(read_answers(self.path))

    def question_answers(self, question_id: str) -> "list[dict[str, Any]]":
        """Return all systems' answers to one question. Raises `VersionError` where it was not asked."""
        table = read_answers(self.path)
        rows: list[dict[str, Any]] = table.filter(pc.equal(table["question_id"], question_id)).to_pylist()
        if not rows:
            raise VersionError(f"{self.reference} has no question {question_id!r}; {ANSWERS_FILE} lists them")
        return rows


def open_evaluation(reference: str | Path) -> EvaluationVersion:
    """Open `evaluations/NAME` (its newest version), `evaluations/NAME@v3`, or a folder. Raises `VersionError`."""
    return open_evaluation_folder(locate(reference, Settings().evaluations_dir, SHELF))


def open_evaluation_folder(path: Path) -> EvaluationVersion:
    folder = path.resolve()
    return EvaluationVersion(folder, read_as(EvaluationManifest, folder, "evaluation"))


def list_evaluations(name: str | None = None) -> Listed[EvaluationVersion]:
    """List the versions of one evaluation, or of all, in order. Raises `VersionError` where `name` has none."""
    return list_opened(Settings().evaluations_dir, name, _open_with_summary, f"{SHELF}/")


def _open_with_summary(path: Path) -> EvaluationVersion:
    """Open a version and read its summary, so that a listing reports a version without a readable one."""
    version = open_evaluation_folder(path)
    _ = version.summary
    return version
