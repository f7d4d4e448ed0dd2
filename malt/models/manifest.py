"""ModelManifest: what a model version is made of and from, every input and file by digest."""

from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import field_validator

from malt.config.base import Recorded
from malt.config.roles import Role
from malt.config.train import Stage, TrainSpec
from malt.datasets.manifest import Code, FileEntry, VersionManifest
from malt.datasets.version.folders import describe_file

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
