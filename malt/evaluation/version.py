"""Evaluation versions: open one and list them. They stand where datasets do, under `evaluations/`."""

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc
from pydantic import ValidationError

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.manifest import MANIFEST_FILE, read_as
from malt.datasets.version.dataset_version import choose_number, list_names, locate
from malt.datasets.version.folders import version_numbers
from malt.datasets.version.published import Published
from malt.errors import VersionError
from malt.evaluation.manifest import EvaluationManifest
from malt.evaluation.summary import MEASURES, Summary
from malt.evaluation.table import ANSWERS_FILE, make_frame, read_answers
from malt.sanitize import escape_controls

if TYPE_CHECKING:
    import pandas as pd

SHELF = "evaluations"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class EvaluationVersion(Published[EvaluationManifest]):
    """One immutable evaluation on disk."""

    @property
    def reference(self) -> str:
        """How commands name it: `evaluations/NAME@v3`."""
        return f"{SHELF}/{self.name}@v{self.number}"

    @property
    def spec(self) -> RunSpec:
        """What it was declared with. Raises `VersionError` where this release cannot read it."""
        return self.manifest.spec

    @cached_property
    def summary(self) -> Summary:
        """Its figures. Raises `VersionError` where they cannot be read."""
        path = self.path / SUMMARY_FILE
        try:
            return Summary.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise VersionError(f"{path} cannot be read; try: malt verify {self.reference}") from error

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
        """Show the figures in a notebook, whatever systems are called."""
        title = f"<h3>{html.escape(self.reference)}</h3>"
        return escape_controls(title + self.figures.to_html(index=False, border=0, float_format="{:.3f}".format))

    @property
    def answers(self) -> "pd.DataFrame":
        """One row a chain."""
        return make_frame(read_answers(self.path))

    def question_answers(self, question_id: str) -> "list[dict[str, Any]]":
        """What all systems say to one question. Raises `VersionError` where it was not asked."""
        table = read_answers(self.path)
        rows: list[dict[str, Any]] = table.filter(pc.equal(table["question_id"], question_id)).to_pylist()
        if not rows:
            raise VersionError(f"{self.reference} has no question {question_id!r}; {ANSWERS_FILE} lists them")
        return rows


def evaluations_dir() -> Path:
    """Return where evaluation versions are kept: `<it>/<name>/v<N>/`."""
    return Settings().data_dir / SHELF


def open_evaluation(reference: str | Path) -> EvaluationVersion:
    """Open `evaluations/NAME` (its newest version), `evaluations/NAME@v3`, or a version's folder.

    Raises `VersionError`, which says what versions there are.
    """
    is_folder = (Path(reference) / MANIFEST_FILE).is_file()
    wanted = reference if is_folder else str(reference).removeprefix(f"{SHELF}/")
    return open_evaluation_folder(locate(wanted, evaluations_dir()))


def open_evaluation_folder(path: Path) -> EvaluationVersion:
    """Open the version in a folder."""
    folder = path.resolve()
    return EvaluationVersion(folder, read_as(EvaluationManifest, folder, "evaluation"))


class ListedEvaluations(NamedTuple):
    """The versions that there are."""

    versions: list[EvaluationVersion]
    unreadable: dict[str, VersionError]


def list_evaluations(name: str | None = None) -> ListedEvaluations:
    """All versions of one evaluation or of all, by name and number. Raises `VersionError` where `name` has none."""
    folder = evaluations_dir()
    if name is not None:
        choose_number(folder / name)
    listed = ListedEvaluations([], {})
    for each in list_names(folder) if name is None else [name]:
        for number in version_numbers(folder / each):
            try:
                version = open_evaluation_folder(folder / each / f"v{number}")
                _ = version.summary  # which a listing quotes
                listed.versions.append(version)
            except VersionError as error:
                listed.unreadable[f"{SHELF}/{each}@v{number}"] = error
    return listed
