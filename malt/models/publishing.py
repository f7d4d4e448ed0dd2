"""Publishing models: what each role's training left becomes the next version, at once or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from malt.canonical_json import digest, file_sha256
from malt.config.spec import Role
from malt.config.train import TrainSpec
from malt.datasets.manifest import FileEntry, Parent
from malt.datasets.stats.counts import code_version
from malt.datasets.version.folders import claim, discard, next_number, open_staging, point_latest, version_numbers
from malt.errors import VersionError
from malt.models.card import render_card
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
    content_digest,
    read_manifest,
    write_manifest,
)
from malt.models.report import render_report
from malt.models.version import ModelVersion, open_folder

CARD_FILE, REPORT_FILE = "README.md", "report.html"


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


def publish_models(made: Made, roles: Mapping[Role, TrainedRole], models_dir: Path) -> ModelVersion:
    """Make the next version of these roles; return the newest one where that has the same weights."""
    folder = models_dir / made.name
    with staging_in(folder) as staging:
        for role, trained in roles.items():
            copy(trained.folder, staging / role)
        files = {str(path.relative_to(staging)): entry_for(path) for path in files_below(staging)}
        while True:
            number, newest = next_number(folder), newest_readable(folder)
            manifest = manifest_of(made, roles, files, number, newest)
            if newest is not None and newest.manifest.content_sha256 == manifest.content_sha256:
                point_latest(folder)
                return newest
            write_pages(manifest, staging)
            path = claim(staging, folder, number)
            if path is not None:
                return ModelVersion(path.resolve(), read_manifest(path), created=True)


@contextmanager
def staging_in(folder: Path) -> Iterator[Path]:
    """Make a folder to write a version in; what is left of it goes."""
    staging = open_staging(folder)
    try:
        yield staging
    finally:
        discard(staging)


def copy(source: Path, place: Path) -> None:
    """Copy weights: as further names of the same files where the disk allows that, for they never change."""
    wanted = (GGUF_FILE, ADAPTER, FULL)
    for path in files_below(source):
        part = path.relative_to(source)
        if part.parts[0] in wanted:
            (place / part).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place / part)
            except OSError:
                shutil.copy2(path, place / part)


def entry_for(path: Path) -> FileEntry:
    """Describe a finished file."""
    return FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest_readable(folder: Path) -> ModelVersion | None:
    """Return the newest version that can be read."""
    for number in reversed(version_numbers(folder)):
        try:
            return open_folder(folder / f"v{number}")
        except VersionError:
            continue
    return None


def manifest_of(
    made: Made, roles: Mapping[Role, TrainedRole], files: dict[str, FileEntry], number: int, newest: ModelVersion | None
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
        parent=Parent(version=newest.number, content_sha256=newest.manifest.content_sha256) if newest else None,
        base=made.base,
        dataset=made.dataset,
        train=made.train,
        roles={role: entry_of(role, trained, files) for role, trained in roles.items()},
        files=files,
        libraries=libraries,
        code=code_version(),
    )


def entry_of(role: Role, trained: TrainedRole, files: Mapping[str, FileEntry]) -> RoleEntry:
    """Describe one role's weights by digest."""
    gguf = files.get(f"{role}/{GGUF_FILE}")
    rest = {
        path: entry.sha256
        for path, entry in files.items()
        if path.startswith((f"{role}/{ADAPTER}/", f"{role}/{FULL}/"))
    }
    return RoleEntry(
        inputs_sha256=trained.inputs_sha256,
        adapter_sha256=digest({path.partition("/")[2]: sha256 for path, sha256 in rest.items()}),
        gguf_sha256=gguf.sha256 if gguf else None,
        stages=trained.stages,
        samples=trained.samples,
    )


def write_pages(manifest: ModelManifest, staging: Path) -> None:
    """Write the card, the report and the manifest."""
    pages = {CARD_FILE: render_card(manifest), REPORT_FILE: render_report(manifest)}
    for name, text in pages.items():
        (staging / name).write_text(text, encoding="utf-8")
    files = {**manifest.files, **{name: entry_for(staging / name) for name in pages}}
    write_manifest(manifest.model_copy(update={"files": files}), staging)
