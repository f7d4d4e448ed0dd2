"""Model versions: what their manifests say, open one, list them, and what they have for a role. Writing one is
`publishing`."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from malt.config.base import Recorded
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import Stage, TrainSpec
from malt.datasets.manifest import Code, FileEntry, VersionManifest, read_as
from malt.datasets.version.dataset_version import Listed, list_opened, locate
from malt.datasets.version.folders import describe_file
from malt.datasets.version.published import Published
from malt.errors import VersionError

if TYPE_CHECKING:
    import pandas as pd


GGUF_FILE = "model.gguf"
ADAPTER = "adapter"
FULL = "model"
_SUFFIXES = {".safetensors", ".gguf", ".json", ".jinja", ".txt", ".md", ".html", ".model"}
"""Kinds of files that a version has: nothing that runs code when it is read."""


class LossPoint(Recorded):
    """One step of training."""

    step: int
    loss: float
    accuracy: float | None = None
    """DPO: share of the batch's pairs whose chosen text gained more."""
    margin: float | None = None
    """DPO: by how much, scaled by beta."""


class StageResult(Recorded):
    """What one stage did: its rows are trained or lost by name."""

    stage: Stage
    rows: int
    """In the dataset version."""
    trained: int
    lost: dict[str, int]
    """Rows left out, by reason."""
    tokens: int
    """Of the rows that were trained, once each."""
    steps: int
    loss_first: float
    loss_last: float
    losses: tuple[LossPoint, ...]
    wall_s: float
    """Seconds it took, interruptions apart."""
    checkpoints: int = 0
    """From how many checkpoints it went on."""


class Canary(Recorded):
    """What tells a trained role from its base: log-probabilities of the likeliest first tokens, by the tokens' text."""

    turns: tuple[dict[str, str], ...]
    """The whole prompt, as messages."""
    before: dict[str, float]
    """Of the base."""
    after: dict[str, float]


class Sample(Recorded):
    """One prompt of the training rows, answered greedily by the base and by the trained role."""

    prompt: str
    """The last turn."""
    before: str
    after: str
    canary: Canary | None = None
    """None in versions of before it was taken."""


class RoleEntry(Recorded):
    """One trained role."""

    inputs_sha256: str
    """Of all that made its weights what they are: base, rows, stages, settings."""
    adapter_sha256: str
    """Over the files of the adapter, or of the whole model."""
    gguf_sha256: str | None
    """Of the file that the embedded model's server plays; None where there is none."""
    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...] = ()


class BaseEntry(Recorded):
    """What was trained."""

    name: str
    sha256: str
    """Of its GGUF file, or over its folder's files."""


class DatasetEntry(Recorded):
    """What it was trained on."""

    name: str
    version: int
    content_sha256: str

    @property
    def reference(self) -> str:
        """How commands name it: `NAME@v3`."""
        return f"{self.name}@v{self.version}"


class ModelManifest(VersionManifest):
    """The whole story of one model version."""

    kind: Literal["models"] = "models"
    base: BaseEntry
    dataset: DatasetEntry
    earlier: tuple[DatasetEntry, ...] = ()
    """Further versions whose rows it was trained on, those of earlier rounds."""
    train: TrainSpec
    roles: dict[Role, RoleEntry]
    libraries: dict[str, str]
    """Versions of what trained it."""
    code: Code

    @field_validator("files")
    @classmethod
    def _holds_no_code(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            if PurePosixPath(path).suffix not in _SUFFIXES:
                raise ValueError(f"file {path!r} is of a kind that model versions do not have")
        return files


def describe_weights(path: Path) -> FileEntry:
    """Describe a file whose bytes are the version's content."""
    known = describe_file(path)
    return known.model_copy(update={"rows_sha256": known.sha256})


_SHELF = "models"
_FIGURES = ("stage", "rows", "trained", "steps", "loss_first", "loss_last")


@dataclass(frozen=True)
class ModelVersion(Published[ModelManifest]):
    """One immutable version on disk."""

    @property
    def played_as(self) -> str:
        """How configs name it: `NAME@v3`."""
        return f"{self.name}@v{self.number}"

    @property
    def figures(self) -> "pd.DataFrame":
        """One row a role and stage: rows, rows trained, steps, and the loss of the first and last."""
        import pandas as pd

        return pd.DataFrame(
            {"role": role.value, **stage.model_dump(include=set(_FIGURES))}
            for role, entry in self.manifest.roles.items()
            for stage in entry.stages
        )

    def _repr_html_(self) -> str:
        return f"<h3>{self.reference}</h3>{self.figures.to_html(index=False, border=0, float_format='{:.3f}'.format)}"

    def role(self, role: Role) -> RoleEntry:
        """Return what it has for a role. Raises `VersionError` where that was not trained."""
        if role not in self.manifest.roles:
            there = ", ".join(self.manifest.roles)
            raise VersionError(f"{self.reference} has no {role}: it was trained for {there}. Name another model")
        return self.manifest.roles[role]

    def adapter_name(self, role: Role) -> str:
        """What a server calls its adapter for a role: a name that no other weights can have."""
        return f"{self.name}-v{self.number}-{role}-{self.role(role).adapter_sha256[:12]}"

    def weights(self, role: Role) -> Path:
        """Return the file that the embedded model's server plays a role from. Raises `VersionError` without one."""
        if self.role(role).gguf_sha256 is None:
            raise VersionError(
                f"{self.reference} has no {GGUF_FILE} for the {role}: its base, {self.manifest.base.name}, was no GGUF "
                f"file. Serve its {role}/adapter with a server of your own, and name that server's model in the config"
            )
        return self.path / role / GGUF_FILE


def open_model(reference: str | Path, models_dir: Path | None = None) -> ModelVersion:
    """Open `NAME` (its newest version), `NAME@v3`, either after `models/`, or a folder. Raises `VersionError`."""
    return open_folder(locate(reference, models_dir or Settings().models_dir, _SHELF))


def open_folder(path: Path) -> ModelVersion:
    """Open the version in a folder; a link is followed, so that the path stays this version's."""
    folder = path.resolve()
    return ModelVersion(folder, read_as(ModelManifest, folder, "model"))


def list_models(models_dir: Path, name: str | None = None) -> Listed[ModelVersion]:
    """All versions of one model or of all, by name and number. Raises `VersionError` where `name` has none."""
    return list_opened(models_dir, name, open_folder, f"{_SHELF}/")
