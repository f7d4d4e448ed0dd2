"""Manifest: what a version is made of and from, every input and file by digest."""

import json
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from malt.canonical_json import digest
from malt.config.base import Recorded, first_problem
from malt.config.roles import Role
from malt.config.spec import RunSpec
from malt.datasets.measures import (
    Cost,
    Counts,
    Diagnostics,
    GrowthSummary,
    LedgerEntry,
    LengthBias,
    LengthCounts,
    RowCounts,
    Tokens,
)
from malt.errors import VersionError
from malt.questions.readers import strip_secrets
from malt.questions.screening import ScreeningCounts

MANIFEST_FILE, CARD_FILE, REPORT_FILE = "manifest.json", "README.md", "report.html"
_SEAL = "manifest_sha256"

Shelf = Literal["datasets", "models", "evaluations"]
"""What a version is one of, and the folder below the data folder that it stands in."""
VersionName = Annotated[str, Field(pattern="^[a-z0-9-]{1,100}$")]
FilePath = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=200)]
"""Below a version's folder: no way out of it, nothing hidden, and the same on every file system."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Recorded):
    """One file of a version."""

    bytes: int
    sha256: str
    """Of the file's bytes."""
    rows: int | None = None
    rows_sha256: str | None = None
    """Of the rows' values, measured columns left out; the same whatever wrote the file."""


class QuestionsUsed(Recorded):
    """Which questions were asked."""

    source: str
    sha256: str
    """Of the questions' values in order, complete or not."""


class Code(Recorded):
    """Which code made the version."""

    version: str
    commit: str | None = None
    """Of the checkout it ran from; ends in `-dirty` where that was changed."""


class Parent(Recorded):
    """The version before this one."""

    version: int
    content_sha256: str


class Failure(Recorded):
    """A branch that could not be had; its question is not in the version."""

    question_id: str
    address: str
    """The node whose children are missing; empty for the question itself."""
    role: str
    reason: str


class VersionManifest(Recorded):
    """What every manifest says, of whatever it is a version."""

    format: Literal[1] = 1
    """Of this file."""
    kind: Shelf = "datasets"
    name: VersionName
    version: int = Field(ge=1)
    created_at: datetime
    content_sha256: Sha256
    """Over the content of all files, not over anything measured or timed."""
    parent: Parent | None
    files: dict[FilePath, FileEntry]
    """By path below the version's folder."""
    suspicions: tuple[str, ...] = ()
    """What makes its content doubtful, a sentence each."""
    withheld: str | None = None
    """Why `latest` does not name it, where that is so though it was the newest."""

    @field_validator("files")
    @classmethod
    def _leave_out_the_manifest(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if own := [path for path in files if path.startswith(MANIFEST_FILE)]:
            raise ValueError(f"names {own[0]} itself")
        return files

    @property
    def name_on_shelf(self) -> str:
        """The name, with what it is a version of unless that is a dataset: `evaluations/NAME`."""
        return self.name if self.kind == "datasets" else f"{self.kind}/{self.name}"

    @property
    def reference(self) -> str:
        """How commands name the version: `NAME@v3`, of models and evaluations with the shelf before it."""
        return f"{self.name_on_shelf}@v{self.version}"


M = TypeVar("M", bound=VersionManifest)


class AskedManifest(VersionManifest):
    """What the manifest of a dataset or an evaluation says: who was asked what."""

    config: dict[str, Any]
    """The whole spec."""
    prompts: dict[str, str]
    """SHA-256 of every prompt file."""
    questions: QuestionsUsed
    code: Code
    failures: tuple[Failure, ...] = ()

    @property
    def spec(self) -> RunSpec:
        """What the version was declared with. Raises `VersionError` where this release cannot read it."""
        try:
            return _read_spec(json.dumps(self.config))
        except ValidationError as error:
            problem = first_problem(error, "config")
            raise VersionError(f"{self.reference}: its config is no longer a valid one ({problem})") from error


@lru_cache(maxsize=32)
def _read_spec(config: str) -> RunSpec:
    return RunSpec.model_validate(json.loads(config))


class Manifest(AskedManifest):
    """The whole story of one dataset version."""

    counts: Counts
    growth: GrowthSummary
    screening: ScreeningCounts
    """Which questions give no rows."""
    selection: dict[str, dict[str, RowCounts]]
    """What became of the candidates, by role, then by kind of row."""
    lengths: dict[str, dict[str, LengthCounts]]
    """Of the rows that were kept, by role, then by kind of row; counted as `dataset.tokenizer` says."""
    length_bias: dict[str, LengthBias]
    """Of the pairs that were kept, by role."""
    diagnostics: Diagnostics
    tokens: dict[str, Tokens]
    """By role; the evaluator's where whoever published could tell."""
    cost: dict[str, Cost]
    """By role; the evaluator's where whoever published could tell."""
    ledger: tuple[LedgerEntry, ...]
    """The same by run, role and model, in that order: whose money made this version, and when."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of the files that have some of their own, by path."""
        return {path: entry.rows for path, entry in self.files.items() if entry.rows is not None}

    @property
    def total_cost_usd(self) -> float | None:
        """What all completions in the version cost; None where one is unknown."""
        if "llm" in self.spec.evaluator.kind and Role.EVALUATOR not in self.cost:
            return None
        known = [cost.cost_usd for cost in self.cost.values() if cost.cost_usd is not None]
        return sum(known) if len(known) == len(self.cost) else None


def published_config(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as a manifest has it: addresses of files without user, password, token and signature."""
    return {name: _strip_addresses(name, value) for name, value in spec.as_config().items()}


def _strip_addresses(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _strip_addresses(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strip_addresses(name, each) for each in value]
    return strip_secrets(value) if isinstance(value, str) and name in ("source", "decontaminate") else value


def content_digest(files: Mapping[str, FileEntry]) -> str:
    """The digest of the rows of all files, from the files' own."""
    return digest({path: entry.rows_sha256 for path, entry in files.items() if entry.rows_sha256})


def write_manifest(manifest: VersionManifest, folder: Path) -> None:
    """Write `manifest.json`, sealed with a digest of itself."""
    content = manifest.model_dump(mode="json")
    text = json.dumps({**content, _SEAL: digest(content)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset version's manifest. Raises `VersionError` where there is none that this release can read."""
    return read_as(Manifest, folder, "dataset")


def read_as(kind: type[M], folder: Path, of: str) -> M:
    """Read the manifest of a version of some kind, which may come from anywhere.

    Names and paths in it stay in the version's folder, and what they lead to is no link and no device, so that whoever
    opened a version may read and send its files. Raises `VersionError` where that does not hold, or none can be read.
    """
    path = folder / MANIFEST_FILE
    _refuse_special(folder, MANIFEST_FILE)
    try:
        manifest = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VersionError(f"{folder} is no {of} version: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = first_problem(error, "the file")
        raise VersionError(f"{path}: {problem}; damaged, or written by a newer release") from error
    for file in manifest.files:
        _refuse_special(folder, file)
    return manifest


def _refuse_special(folder: Path, file: str) -> None:
    """Raise `VersionError` where a file of a version, or a folder on the way to it, is there and is another thing."""
    for way in (PurePosixPath(file), *PurePosixPath(file).parents[:-1]):
        path = folder / way
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) if way == PurePosixPath(file) else stat.S_ISDIR(mode)):
            raise VersionError(
                f"{path} is a link or no plain file; a version holds nothing else, so nothing of {folder} is read. "
                "Take it from where it was made"
            )


def seal_holds(folder: Path) -> bool:
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    with suppress(ValueError):  # a number that JSON does not have
        return bool(content.pop(_SEAL, None) == digest(content))
    return False
