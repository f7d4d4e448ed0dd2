"""Publishing models: what each role's training left becomes the next version, at once or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from malt.canonical_json import digest
from malt.config.roles import Role
from malt.config.train import TrainSpec
from malt.datasets.manifest import FileEntry, Parent, content_digest, write_manifest
from malt.datasets.stats.counts import code_version
from malt.datasets.version.folders import describe_file, discard, open_staging, place_next
from malt.models.card import CARD_FILE, render_card
from malt.models.manifest import (
    ADAPTER,
    FULL,
    GGUF_FILE,
    BaseEntry,
    DatasetEntry,
    ModelManifest,
    RoleEntry,
    Sample,
    StageResult,
    describe_weights,
)
from malt.models.report import REPORT_FILE, render_report
from malt.models.version import ModelVersion, open_folder


class TrainedRole(NamedTuple):
    """What one role's training left."""

    folder: Path
    """With the adapter or the whole model, and the GGUF file where there is one."""
    inputs_sha256: str
    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...]
    libraries: Mapping[str, str]


class Made(NamedTuple):
    """What a model version was made from."""

    name: str
    base: BaseEntry
    dataset: DatasetEntry
    train: TrainSpec
    earlier: tuple[DatasetEntry, ...] = ()


def publish_models(made: Made, roles: Mapping[Role, TrainedRole], models_dir: Path) -> ModelVersion:
    """Make the next version of these roles; return the newest one where that has the same weights."""
    folder = models_dir / made.name
    with _staging_in(folder) as staging:
        for role, trained in roles.items():
            _copy(trained.folder, staging / role)
        files = {str(path.relative_to(staging)): describe_weights(path) for path in _files_below(staging)}
        placed = place_next(
            staging,
            folder,
            lambda number, parent: _describe(made, roles, files, number, parent),
            lambda manifest: _write_pages(manifest, staging),
        )
    return replace(open_folder(placed.path), created=placed.created)


@contextmanager
def _staging_in(folder: Path) -> Iterator[Path]:
    """Make a folder to write a version in; what is left of it goes."""
    staging = open_staging(folder)
    try:
        yield staging
    finally:
        discard(staging)


def _copy(source: Path, place: Path) -> None:
    """Copy weights: as further names of the same files where the disk allows that, for they never change."""
    wanted = (GGUF_FILE, ADAPTER, FULL)
    for path in _files_below(source):
        part = path.relative_to(source)
        if part.parts[0] in wanted:
            (place / part).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place / part)
            except OSError:
                shutil.copy2(path, place / part)


def _files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(
    made: Made, roles: Mapping[Role, TrainedRole], files: dict[str, FileEntry], number: int, parent: Parent | None
) -> ModelManifest:
    """Say what these files are as a version of this number."""
    libraries: dict[str, str] = {}
    for trained in roles.values():
        libraries.update(trained.libraries)
    return ModelManifest(
        name=made.name,
        version=number,
        created_at=datetime.now(UTC),
        content_sha256=content_digest(files),
        parent=parent,
        base=made.base,
        dataset=made.dataset,
        earlier=made.earlier,
        train=made.train,
        roles={role: _describe_entry(role, trained, files) for role, trained in roles.items()},
        files=files,
        libraries=libraries,
        code=code_version(),
    )


def _describe_entry(role: Role, trained: TrainedRole, files: Mapping[str, FileEntry]) -> RoleEntry:
    adapter, gguf = describe_role(role, files)
    return RoleEntry(
        inputs_sha256=trained.inputs_sha256,
        adapter_sha256=adapter,
        gguf_sha256=gguf,
        stages=trained.stages,
        samples=trained.samples,
    )


def describe_role(role: Role, files: Mapping[str, FileEntry]) -> tuple[str, str | None]:
    """Return the digest over a role's adapter or whole model, and its GGUF file's, from the files' own."""
    gguf = files.get(f"{role}/{GGUF_FILE}")
    parts = (f"{role}/{ADAPTER}/", f"{role}/{FULL}/")
    paths = (path for path in files if path.startswith(parts))
    own: dict[str, JsonValue] = {path.partition("/")[2]: files[path].sha256 for path in paths}
    return digest(own), gguf.sha256 if gguf else None


def _write_pages(manifest: ModelManifest, staging: Path) -> None:
    """Write the card, the report and the manifest."""
    pages = {CARD_FILE: render_card(manifest), REPORT_FILE: render_report(manifest)}
    for name, text in pages.items():
        (staging / name).write_text(text, encoding="utf-8")
    files = {**manifest.files, **{name: describe_file(staging / name) for name in pages}}
    write_manifest(manifest.model_copy(update={"files": files}), staging)
