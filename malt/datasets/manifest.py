"""Manifest of a version: digests of its inputs and files, counts and costs; how it is written and read."""

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
"""Kind of a version, and the name of its kind's folder below the data folder."""
VersionName = Annotated[str, Field(pattern="^[a-z0-9-]{1,100}$")]
FilePath = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=200)]
"""Path below a version's folder: stays in the folder, has no hidden part, and is the same on every file system."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Recorded):
    """One file of a version."""

    bytes: int
    sha256: str
    """Digest of the file's bytes."""
    rows: int | None = None
    rows_sha256: str | None = None
    """Digest of the rows' values without measured columns; independent of the library that wrote the file."""


class QuestionsUsed(Recorded):
    """Source and digest of the questions that were asked."""

    source: str
    sha256: str
    """Digest of the questions' values in order, including questions without a complete tree."""


class Code(Recorded):
    """Code that made the version."""

    version: str
    commit: str | None = None
    """Commit of the checkout that the code ran from; ends in `-dirty` where files differ from it."""


class Parent(Recorded):
    """The version before this one."""

    version: int
    content_sha256: str


class Failure(Recorded):
    """A branch that could not be grown; the tree of its question is not in the version."""

    question_id: str
    address: str
    """The node whose children are missing; empty for the question itself."""
    role: str
    reason: str


class VersionManifest(Recorded):
    """Fields that the manifests of all kinds of versions share."""

    format: Literal[1] = 1
    """Format number of this file."""
    kind: Shelf = "datasets"
    name: VersionName
    version: int = Field(ge=1)
    created_at: datetime
    content_sha256: Sha256
    """Digest of the content of all files, without measured and timed values."""
    parent: Parent | None
    files: dict[FilePath, FileEntry]
    """Files by path below the version's folder."""
    suspicions: tuple[str, ...] = ()
    """Reasons to doubt the content, a sentence each."""
    withheld: str | None = None
    """Reason why `latest` did not name the version when it was the newest; None where it did."""

    @field_validator("files")
    @classmethod
    def _leave_out_the_manifest(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if reserved := [path for path in files if path.startswith(MANIFEST_FILE)]:
            raise ValueError(f"names {reserved[0]} itself")
        return files

    @property
    def name_on_shelf(self) -> str:
        """The name, prefixed with the kind unless that is a dataset: `evaluations/NAME`."""
        return self.name if self.kind == "datasets" else f"{self.kind}/{self.name}"

    @property
    def reference(self) -> str:
        """The version's name in commands: `NAME@v3`, for models and evaluations with the kind before it."""
        return f"{self.name_on_shelf}@v{self.version}"


M = TypeVar("M", bound=VersionManifest)


class AskedManifest(VersionManifest):
    """Fields that the manifests of datasets and evaluations share: spec, prompts, questions, code and failures."""

    config: dict[str, Any]
    """The whole spec."""
    prompts: dict[str, str]
    """SHA-256 of every prompt file."""
    questions: QuestionsUsed
    code: Code
    failures: tuple[Failure, ...] = ()

    @property
    def spec(self) -> RunSpec:
        """Spec that the version was made from. Raises `VersionError` where this release cannot read it."""
        try:
            return _read_spec(json.dumps(self.config))
        except ValidationError as error:
            problem = first_problem(error, "config")
            raise VersionError(f"{self.reference}: its config is no longer a valid one ({problem})") from error


@lru_cache(maxsize=32)
def _read_spec(config: str) -> RunSpec:
    return RunSpec.model_validate(json.loads(config))


class Manifest(AskedManifest):
    """Manifest of a dataset version."""

    counts: Counts
    growth: GrowthSummary
    screening: ScreeningCounts
    """Counts of the questions that give no rows."""
    selection: dict[str, dict[str, RowCounts]]
    """Candidates that were kept and dropped, by role, then by kind of row."""
    lengths: dict[str, dict[str, LengthCounts]]
    """Lengths of the kept rows, by role, then by kind of row; in tokens, as `dataset.tokenizer` counts them."""
    length_bias: dict[str, LengthBias]
    """Lengths of both texts of the kept pairs, by role."""
    diagnostics: Diagnostics
    tokens: dict[str, Tokens]
    """Tokens by role; the evaluator's only where they were known at publishing."""
    cost: dict[str, Cost]
    """Cost by role; the evaluator's only where it was known at publishing."""
    ledger: tuple[LedgerEntry, ...]
    """Tokens and cost by run, role and model, in that order: which runs paid for this version, and when."""

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each file that holds rows, by path."""
        return {path: entry.rows for path, entry in self.files.items() if entry.rows is not None}

    @property
    def total_cost_usd(self) -> float | None:
        """Cost of all completions in the version; None where the cost of one is unknown."""
        if "llm" in self.spec.evaluator.kind and Role.EVALUATOR not in self.cost:
            return None
        known = [cost.cost_usd for cost in self.cost.values() if cost.cost_usd is not None]
        return sum(known) if len(known) == len(self.cost) else None


def published_config(spec: RunSpec) -> dict[str, Any]:
    """Return a spec for a manifest: addresses of files lose their user, password, token and signature."""
    return {name: _strip_addresses(name, value) for name, value in spec.as_config().items()}


def _strip_addresses(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _strip_addresses(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strip_addresses(name, each) for each in value]
    return strip_secrets(value) if isinstance(value, str) and name in ("source", "decontaminate") else value


def content_digest(files: Mapping[str, FileEntry]) -> str:
    """Return the digest of the rows of all files, from each file's `rows_sha256`."""
    return digest({path: entry.rows_sha256 for path, entry in files.items() if entry.rows_sha256})


def write_manifest(manifest: VersionManifest, folder: Path) -> None:
    """Write `manifest.json`, sealed with a digest of itself."""
    content = manifest.model_dump(mode="json")
    text = json.dumps({**content, _SEAL: digest(content)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset version's manifest. Raises `VersionError` where there is none that this release can read."""
    return read_as(Manifest, folder, "dataset")


def read_as(kind: type[M], folder: Path, label: str) -> M:
    """Read the manifest of a version, which is not trusted.

    Every path in it must stay in the version's folder and lead to a plain file, so that callers may read and send the
    version's files. Raises `VersionError` where one does not, or where no manifest can be read.
    """
    path = folder / MANIFEST_FILE
    _refuse_special(folder, MANIFEST_FILE)
    try:
        manifest = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VersionError(f"{folder} is no {label} version: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = first_problem(error, "the file")
        raise VersionError(f"{path}: {problem}; damaged, or written by a newer release") from error
    for file in manifest.files:
        _refuse_special(folder, file)
    return manifest


def _refuse_special(folder: Path, file: str) -> None:
    """Raise `VersionError` where a file, or a folder above it, is a link or a special file; missing ones pass."""
    for part in (PurePosixPath(file), *PurePosixPath(file).parents[:-1]):
        path = folder / part
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if not (stat.S_ISREG(mode) if part == PurePosixPath(file) else stat.S_ISDIR(mode)):
            raise VersionError(
                f"{path} is a link or no plain file. A version holds only plain files, so nothing of {folder} is read; "
                "copy the version again from where it was made"
            )


def seal_holds(folder: Path) -> bool:
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    with suppress(ValueError):  # NaN or infinity, which JSON does not have
        return bool(content.pop(_SEAL, None) == digest(content))
    return False
