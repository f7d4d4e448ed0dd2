"""Model versions: their manifests, opening and listing them, and the weights of a role. `publishing` writes them."""

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
"""File types that a version may contain: none of them runs code when it is read."""


class LossPoint(Recorded):
    """One step of training."""

    step: int
    loss: float
    accuracy: float | None = None
    """DPO: share of the batch's pairs whose chosen text gained more probability than the rejected one."""
    margin: float | None = None
    """DPO: mean difference of these gains in log-probability, times beta."""


class StageResult(Recorded):
    """Result of one stage: each row was either trained on or left out for a named reason."""

    stage: Stage
    rows: int
    """Rows in the dataset versions."""
    trained: int
    lost: dict[str, int]
    """Rows left out, by reason."""
    tokens: int
    """Tokens of the trained rows, in one epoch."""
    steps: int
    loss_first: float
    loss_last: float
    losses: tuple[LossPoint, ...]
    wall_s: float
    """Seconds of training, without interruptions."""
    checkpoints: int = 0
    """Number of times that training resumed from a checkpoint."""


class Canary(Recorded):
    """Log-probabilities of the likeliest first tokens, by the tokens' text: they tell a trained role from its base."""

    turns: tuple[dict[str, str], ...]
    """The whole prompt, as messages."""
    before: dict[str, float]
    """Log-probabilities of the base."""
    after: dict[str, float]
    """Log-probabilities of the trained role."""


class Sample(Recorded):
    """One prompt of the training rows, answered greedily by the base and by the trained role."""

    prompt: str
    """Text of the prompt's last turn."""
    before: str
    after: str
    canary: Canary | None = None
    """None in versions from before canaries were recorded."""


class RoleEntry(Recorded):
    """One trained role."""

    inputs_sha256: str
    """Digest of everything that determined the weights: base, rows, stages, settings."""
    adapter_sha256: str
    """Digest over the files of the adapter, or of the whole model."""
    gguf_sha256: str | None
    """Digest of the GGUF file that the embedded server loads; None where there is none."""
    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...] = ()


class BaseEntry(Recorded):
    """Base model of a training."""

    name: str
    sha256: str
    """Digest of the base's GGUF file, or over the files of its folder."""


class DatasetEntry(Recorded):
    """Dataset version that a model was trained on."""

    name: str
    version: int
    content_sha256: str

    @property
    def reference(self) -> str:
        """Name of the version in commands: `NAME@v3`."""
        return f"{self.name}@v{self.version}"


class ModelManifest(VersionManifest):
    """Manifest of one model version."""

    kind: Literal["models"] = "models"
    base: BaseEntry
    dataset: DatasetEntry
    earlier: tuple[DatasetEntry, ...] = ()
    """Further dataset versions that it was trained on, those of earlier rounds."""
    train: TrainSpec
    roles: dict[Role, RoleEntry]
    libraries: dict[str, str]
    """Versions of the packages that trained it."""
    code: Code

    @field_validator("files")
    @classmethod
    def _holds_no_code(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            if PurePosixPath(path).suffix not in _SUFFIXES:
                raise ValueError(f"file {path!r} is of a kind that model versions do not have")
        return files


def describe_weights(path: Path) -> FileEntry:
    """Describe a weights file: the digest of its content is that of its bytes."""
    known = describe_file(path)
    return known.model_copy(update={"rows_sha256": known.sha256})


_SHELF = "models"
_FIGURES = ("stage", "rows", "trained", "steps", "loss_first", "loss_last")


@dataclass(frozen=True)
class ModelVersion(Published[ModelManifest]):
    """One immutable version on disk."""

    @property
    def played_as(self) -> str:
        """Name of the version in configs: `NAME@v3`."""
        return f"{self.name}@v{self.number}"

    @property
    def figures(self) -> "pd.DataFrame":
        """One row for each role and stage: rows, rows trained, steps, and the loss of the first and last step."""
        import pandas as pd

        return pd.DataFrame(
            {"role": role.value, **stage.model_dump(include=set(_FIGURES))}
            for role, entry in self.manifest.roles.items()
            for stage in entry.stages
        )

    def _repr_html_(self) -> str:
        return f"<h3>{self.reference}</h3>{self.figures.to_html(index=False, border=0, float_format='{:.3f}'.format)}"

    def role(self, role: Role) -> RoleEntry:
        """Return the manifest's entry of a role. Raises `VersionError` where that role was not trained."""
        if role not in self.manifest.roles:
            trained = ", ".join(self.manifest.roles)
            raise VersionError(f"{self.reference} has no {role}: it was trained for {trained}. Name another model")
        return self.manifest.roles[role]

    def adapter_name(self, role: Role) -> str:
        """Return the name of a role's adapter on a server; it contains the digest, so no other weights share it."""
        return f"{self.name}-v{self.number}-{role}-{self.role(role).adapter_sha256[:12]}"

    def weights(self, role: Role) -> Path:
        """Return the GGUF file that the embedded server loads for a role. Raises `VersionError` where there is none."""
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
    """Open the version in a folder. Links such as `latest` are resolved, so that the path keeps naming this version."""
    folder = path.resolve()
    return ModelVersion(folder, read_as(ModelManifest, folder, "model"))


def list_models(models_dir: Path, name: str | None = None) -> Listed[ModelVersion]:
    """List the versions of one model, or of all, by name and number. Raises `VersionError` where `name` has none."""
    return list_opened(models_dir, name, open_folder, f"{_SHELF}/")
