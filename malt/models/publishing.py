"""Publishing of trained roles as the next model version, atomically, and verification of a published one.

A version's pages are the card, `README.md`, and the report, one HTML file that loads and runs nothing.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from pydantic import JsonValue

from malt.canonical_json import digest
from malt.config.roles import Role
from malt.config.train import TrainSpec
from malt.datasets.manifest import CARD_FILE, MANIFEST_FILE, REPORT_FILE, FileEntry, Parent, content_digest
from malt.datasets.pages.page import page_environment
from malt.datasets.stats.counts import code_version
from malt.datasets.version.folders import name_version, place_next, staging_in
from malt.datasets.version.published import check_files, check_pages, check_seal
from malt.errors import TrainingFailed
from malt.models.version import (
    ADAPTER,
    FULL,
    GGUF_FILE,
    BaseEntry,
    DatasetEntry,
    ModelManifest,
    ModelVersion,
    RoleEntry,
    Sample,
    StageResult,
    describe_weights,
    open_folder,
)


class TrainedRole(NamedTuple):
    """Result of training one role."""

    folder: Path
    """Folder with the adapter or the whole model, and the GGUF file where there is one."""
    inputs_sha256: str
    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...]
    libraries: Mapping[str, str]


class Made(NamedTuple):
    """Inputs of a model version."""

    name: str
    base: BaseEntry
    dataset: DatasetEntry
    train: TrainSpec
    earlier: tuple[DatasetEntry, ...] = ()


def publish_models(made: Made, roles: Mapping[Role, TrainedRole], models_dir: Path) -> ModelVersion:
    """Publish these roles as the next version; return the newest version instead where it has the same weights."""
    folder = models_dir / made.name
    with staging_in(folder) as staging:
        for role, trained in roles.items():
            _copy(_find_weights(role, trained.folder), trained.folder, staging / role)
        files = {str(path.relative_to(staging)): describe_weights(path) for path in _files_below(staging)}
        placed = place_next(
            staging,
            folder,
            lambda number, parent: _describe(made, roles, files, number, parent),
            lambda manifest: name_version(manifest, _render_pages(manifest), staging),
        )
    return replace(open_folder(placed.path), created=placed.created)


def _find_weights(role: Role, folder: Path) -> list[Path]:
    found = [path for path in _files_below(folder) if path.relative_to(folder).parts[0] in (GGUF_FILE, ADAPTER, FULL)]
    if not found:
        raise TrainingFailed(f"the {role} has no weights in {folder}, so nothing was published; remove it, train again")
    return found


def _copy(files: Iterable[Path], source: Path, place: Path) -> None:
    """Copy weights, as hard links where the file system allows: the files never change."""
    for path in files:
        copy = place / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(
    made: Made, roles: Mapping[Role, TrainedRole], files: dict[str, FileEntry], number: int, parent: Parent | None
) -> ModelManifest:
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
        libraries={name: used for trained in roles.values() for name, used in trained.libraries.items()},
        code=code_version(),
    )


def _describe_entry(role: Role, trained: TrainedRole, files: Mapping[str, FileEntry]) -> RoleEntry:
    adapter, gguf = _digest_role(role, files)
    return RoleEntry(
        inputs_sha256=trained.inputs_sha256,
        adapter_sha256=adapter,
        gguf_sha256=gguf,
        stages=trained.stages,
        samples=trained.samples,
    )


def _digest_role(role: Role, files: Mapping[str, FileEntry]) -> tuple[str, str | None]:
    """Return the digest over the files of a role's adapter or whole model, and the digest of its GGUF file."""
    gguf = files.get(f"{role}/{GGUF_FILE}")
    parts = (f"{role}/{ADAPTER}/", f"{role}/{FULL}/")
    paths = (path for path in files if path.startswith(parts))
    own: dict[str, JsonValue] = {path.partition("/")[2]: files[path].sha256 for path in paths}
    return digest(own), gguf.sha256 if gguf else None


def _render_pages(manifest: ModelManifest) -> dict[str, str]:
    return {CARD_FILE: render_card(manifest), REPORT_FILE: render_report(manifest)}


# Verification: the digest of every file, and the manifest's own digests.


def verify(version: ModelVersion) -> list[str]:
    """Return a sentence for each problem, naming the file; nothing where the version is as it was published."""
    manifest = version.manifest
    pages = _render_pages(manifest) if manifest.code == code_version() else {}
    weights = [f"{role}/{GGUF_FILE}" for role, entry in manifest.roles.items() if entry.gguf_sha256]
    return [
        *map(str, check_seal(version)),
        *(f"{MANIFEST_FILE}: the {role}'s digests are not those of its files" for role in _list_wrong(manifest)),
        *map(str, check_files(version, weights)),
        *map(str, check_pages(version, pages)),
    ]


def _list_wrong(manifest: ModelManifest) -> Iterator[Role]:
    for role, entry in manifest.roles.items():
        if _digest_role(role, manifest.files) != (entry.adapter_sha256, entry.gguf_sha256):
            yield role


# The pages.

_FOLDER = Path(__file__).parent
_HUB_NAMES = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Names on the Hub of bases that a config names otherwise."""


class _Plot(NamedTuple):
    """Line plot over the steps of a stage."""

    title: str
    style: str
    points: str
    """Coordinates in a square of 100 by 100."""
    first: str
    last: str
    low: str
    high: str
    steps: int


def render_card(manifest: ModelManifest) -> str:
    stages = sorted({stage.stage for entry in manifest.roles.values() for stage in entry.stages})
    return _card().render(
        manifest=manifest,
        stages=stages,
        base_model=_HUB_NAMES.get(manifest.base.name, manifest.base.name),
        dataset=manifest.dataset.reference,
        has_gguf=any(entry.gguf_sha256 for entry in manifest.roles.values()),
    )


def render_report(manifest: ModelManifest) -> str:
    plots = {role: list(_list_plots(entry)) for role, entry in manifest.roles.items()}
    return page_environment(_FOLDER).get_template("report.html.jinja").render(manifest=manifest, plots=plots)


@cache
def _card() -> Template:
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.from_string((_FOLDER / "card.md.jinja").read_text(encoding="utf-8"))


def _list_plots(entry: RoleEntry) -> Iterator[_Plot]:
    """Yield a plot of every stage's loss, and for DPO of its margin."""
    for stage in entry.stages:
        losses = [point.loss for point in stage.losses]
        if losses:
            yield _draw_plot(f"{stage.stage}: loss", "", losses)
        margins = [point.margin for point in stage.losses if point.margin is not None]
        if margins:
            yield _draw_plot(f"{stage.stage}: margin", "other", margins)


def _draw_plot(title: str, style: str, values: Sequence[float]) -> _Plot:
    """Plot values from left to right, the highest at the top."""
    low, high = min(values), max(values)
    across, tall = max(len(values) - 1, 1), (high - low) or 1.0
    points = " ".join(
        f"{100 * place / across:.2f},{95 - 90 * (value - low) / tall:.2f}" for place, value in enumerate(values)
    )
    first, last, lowest, highest = (f"{value:.4f}" for value in (values[0], values[-1], low, high))
    return _Plot(title, style, points, first, last, lowest, highest, len(values))
