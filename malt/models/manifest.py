"""ModelManifest: what a model version is made of and from, every input and file by digest."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from malt.canonical_json import digest
from malt.config.base import Recorded
from malt.config.spec import Role
from malt.config.train import Stage, TrainSpec
from malt.datasets.manifest import MANIFEST_FILE, Code, FileEntry, Parent
from malt.errors import VersionError

SEAL = "manifest_sha256"
GGUF_FILE = "model.gguf"
ADAPTER = "adapter"
FULL = "model"
ALLOWED = re.compile(r"[A-Za-z0-9][\w.-]*")
"""What a part of a file's path may be."""
KEPT_SUFFIXES = {".safetensors", ".gguf", ".json", ".jinja", ".txt", ".md", ".html", ".model"}
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


class Sample(Recorded):
    """One prompt of the training rows, answered greedily by the base and by the trained role."""

    prompt: str
    """The last turn."""
    before: str
    after: str


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


class ModelManifest(Recorded):
    """The whole story of one model version."""

    format: Literal[1] = 1
    kind: Literal["models"] = "models"
    name: str = Field(pattern=r"^[a-z0-9-]{1,100}$")
    version: int = Field(ge=1)
    created_at: datetime
    content_sha256: str
    """Over the weights and tokenizers, not over anything timed."""
    parent: Parent | None
    base: BaseEntry
    dataset: DatasetEntry
    train: TrainSpec
    roles: dict[Role, RoleEntry]
    files: dict[str, FileEntry]
    """By path below the version's folder."""
    libraries: dict[str, str]
    """Versions of what trained it."""
    code: Code

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            parts = PurePosixPath(path).parts
            if "\\" in path or str(PurePosixPath(*parts)) != path or not all(map(ALLOWED.fullmatch, parts)):
                raise ValueError(f"file {path[:80]!r} is no plain path below the version")
            if PurePosixPath(path).suffix not in KEPT_SUFFIXES:
                raise ValueError(f"file {path[:80]!r} is of a kind that model versions do not have")
        return files


def content_digest(files: Mapping[str, FileEntry]) -> str:
    """Return the digest of the weights and tokenizers, from the files' own."""
    return digest({path: entry.sha256 for path, entry in files.items() if "/" in path})


def write_manifest(manifest: ModelManifest, folder: Path) -> None:
    """Write `manifest.json`, sealed with a digest of itself."""
    content = manifest.model_dump(mode="json")
    text = json.dumps({**content, SEAL: digest(content)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> ModelManifest:
    """Read a model version's manifest, and check that it names nothing outside its folder. Raises `VersionError`."""
    path = folder / MANIFEST_FILE
    try:
        manifest = ModelManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VersionError(f"{folder} is no model version: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise VersionError(f"{path}: {place}: {first['msg']}; damaged, or written by a newer release") from error
    for name in manifest.files:
        refuse_links(folder, name)
    return manifest


def refuse_links(folder: Path, name: str) -> None:
    """Raise `VersionError` where a file, or a folder above it in the version, is a link: it may lead anywhere."""
    place = folder
    for part in PurePosixPath(name).parts:
        place /= part
        if place.is_symlink():
            raise VersionError(f"{place} is a link; a model version holds its own files: copy the file there")
