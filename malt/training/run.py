"""Training of a dataset version: one job for each role, in a separate process, then a model version of the results."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from malt.config.loader import load_spec, override_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.datasets.version.folders import discard, move_away
from malt.errors import NothingToTrain, TrainingFailed
from malt.files import FileLock
from malt.llm.provider import embedded
from malt.models.publishing import Made, TrainedRole, publish_models
from malt.models.version import BaseEntry, DatasetEntry, ModelVersion, StageResult, list_models
from malt.training.base import Base, find_base
from malt.training.job import (
    BASES,
    LOCK,
    RESULT_FILE,
    RoleJob,
    RoleResult,
    list_jobs,
    name_skipped,
)
from malt.training.process import Stopper, Tell, check_installed, run_jobs

_LOOK_EVERY_S = 0.5
"""Interval in seconds at which a waiting training tries the lock again."""


class Prepared(NamedTuple):
    """Inputs of a training, read and checked before anything is trained."""

    versions: list[DatasetVersion]
    """Dataset versions to train on; the last one names the models, unless `train` does."""
    train: TrainSpec
    base: Base
    jobs: list[RoleJob]
    skipped: list[str]
    settings: Settings

    @property
    def name(self) -> str:
        return self.train.name or self.versions[-1].name


class RoleSummary(BaseModel):
    """Result of one role."""

    rows: int
    steps: int
    loss_first: float
    loss_last: float
    cached: bool
    """Whether a model version had the role already, so that nothing was trained."""
    stages: dict[str, StageResult]


class TrainSummary(BaseModel):
    """Output of `malt train --json`."""

    models: str
    version: int
    path: str
    content_sha256: str
    created: bool
    roles: dict[str, RoleSummary]
    skipped: list[str]
    wall_s: float


def train(
    version: str | Path | DatasetVersion, spec: TrainSpec | None = None, *,
    earlier: Sequence[str | Path | DatasetVersion] = (), tell: Tell = lambda _: None, settings: Settings | None = None,
) -> TrainSummary:  # fmt: skip
    """Train the roles of a dataset version; `spec` is by default the `[train]` that the version was declared with.

    `earlier` versions' rows come before its own. Roles that a model version has already are not trained again, and an
    interrupted training resumes when called again. A second training of the same name waits for the first. Raises
    `ConfigError` before anything is trained where it cannot be, `NothingToTrain`, and `TrainingFailed`.
    """
    prepared = prepare(version, spec, settings or Settings(), earlier)
    return train_prepared(prepared, partial(train_jobs, tell=tell), publish, tell)


def train_prepared(
    prepared: Prepared,
    train_roles: Callable[[list[RoleJob]], None],
    publish_roles: Callable[[Prepared, dict[Role, TrainedRole]], ModelVersion],
    tell: Tell,
    stopper: Stopper | None = None,
) -> TrainSummary:
    """Train the roles that no model version has, and publish, under the lock of the models' name.

    The two steps are arguments: they run in this process, or as task runs. Raises `RunStopped` once `stopper` stops.
    """
    started = time.monotonic()
    with _hold_lock(prepared.settings.training_dir / prepared.name, tell, stopper or Stopper()):
        if (published := find_trained(prepared)) is not None:
            return summarise(prepared, published, set(published.manifest.roles), time.monotonic() - started)
        check_installed()
        known = {job.role: find_trained_role(job, prepared) for job in prepared.jobs}
        train_roles([job for job in prepared.jobs if known[job.role] is None])
        published = publish_roles(prepared, {job.role: known[job.role] or _read_result(job) for job in prepared.jobs})
        cached = {role for role, trained in known.items() if trained}
        return summarise(prepared, published, cached, time.monotonic() - started)


@contextmanager
def _hold_lock(folder: Path, tell: Tell, stopper: Stopper) -> Iterator[None]:
    """Hold the lock of a models' name; where another training holds it, report the holder once, and wait."""
    lock, is_reported = FileLock(folder / LOCK, f"process {os.getpid()} on {socket.gethostname()}"), False
    try:
        while (holder := lock.take()) is not None:
            if not is_reported:
                tell({"event": "waiting", "models": folder.name, "holder": holder or "another training"})
            is_reported = True
            stopper.wait(_LOOK_EVERY_S)
        yield
    finally:
        lock.release()


def read_train_spec(version: DatasetVersion, config: Path | None, overrides: Sequence[str] = ()) -> TrainSpec:
    """Return how to train a version. Raises `ConfigError` for a config or an override that is wrong, and
    `VersionError` for a version from elsewhere whose own config names a base other than `embedded`.
    """
    if config is not None:
        return load_spec(config, overrides).train
    if not any(each.partition("=")[0].strip() == "train.base" for each in overrides):
        _refuse_foreign_base(version, Settings())
    return override_spec(version.spec, overrides, version.path).train


def _refuse_foreign_base(version: DatasetVersion, settings: Settings) -> None:
    if (base := version.spec.train.base) != embedded.NAME:
        instead = "name one with -s train.base=, or give a config"
        version.refuse_foreign(settings.datasets_dir, f"the base {base!r}", instead)


def prepare(
    version: str | Path | DatasetVersion, spec: TrainSpec | None, settings: Settings,
    earlier: Sequence[str | Path | DatasetVersion] = (),
) -> Prepared:  # fmt: skip
    """Read all that training needs. Raises `NothingToTrain` where no version has a row for any declared stage."""
    versions = [
        each if isinstance(each, DatasetVersion) else open_version(each, settings.datasets_dir)
        for each in (*earlier, version)
    ]
    opened = versions[-1]
    if spec is None:
        _refuse_foreign_base(opened, settings)
    chosen = opened.spec.train if spec is None else spec
    base = find_base(chosen.base, settings.training_dir / BASES)
    place = settings.training_dir / (chosen.name or opened.name)
    jobs = list_jobs(versions, chosen, base, place.resolve())
    if not jobs:
        raise nothing_to_train(opened)
    return Prepared(versions, chosen, base, jobs, name_skipped(versions, chosen), settings)


def nothing_to_train(version: DatasetVersion) -> NothingToTrain:
    """Return the error for versions without a row for any declared stage."""
    why = f"{version.reference} has no row for any stage that [train] names"
    return NothingToTrain(f"{why}: grow more questions, or lower credit.threshold")


def find_trained(prepared: Prepared) -> ModelVersion | None:
    """Return the model version of this name that was trained from the same inputs; None where there is none."""
    wanted = {job.role: job.inputs_sha256 for job in prepared.jobs}
    named = (each for each in list_models(prepared.settings.models_dir)[0] if each.name == prepared.name)
    return next((version for version in named if _inputs_of(version) == wanted), None)


def _inputs_of(version: ModelVersion) -> dict[Role, str]:
    return {role: entry.inputs_sha256 for role, entry in version.manifest.roles.items()}


def find_trained_role(job: RoleJob, prepared: Prepared) -> TrainedRole | None:
    """Return the role from any model version that trained it from the same inputs; None where there is none."""
    wanted = job.inputs_sha256
    for version in reversed(list_models(prepared.settings.models_dir)[0]):
        entry = version.manifest.roles.get(job.role)
        if entry is not None and entry.inputs_sha256 == wanted:
            return TrainedRole(version.path / job.role, wanted, entry.stages, entry.samples, version.manifest.libraries)
    return None


def train_jobs(jobs: Sequence[RoleJob], tell: Tell, stopper: Stopper | None = None) -> None:
    """Train the jobs that earlier calls have not finished."""
    if left := [job for job in jobs if not job.done.exists()]:
        run_jobs("train", left, tell, stopper)


def _read_result(job: RoleJob) -> TrainedRole:
    if not (file := job.done / RESULT_FILE).exists():
        raise TrainingFailed(f"training the {job.role} left no {RESULT_FILE} in {job.done}; remove it, train again")
    result = RoleResult.model_validate_json(file.read_bytes())
    return TrainedRole(job.done, result.inputs_sha256, result.stages, result.samples, result.libraries)


def publish(prepared: Prepared, roles: dict[Role, TrainedRole]) -> ModelVersion:
    """Publish trained roles as a model version, and delete the folders of their jobs."""
    *earlier, dataset = map(_dataset_entry, prepared.versions)
    base = BaseEntry(name=prepared.base.name, sha256=prepared.base.sha256)
    made = Made(prepared.name, base, dataset, prepared.train, tuple(earlier))
    published = publish_models(made, roles, prepared.settings.models_dir)
    for job in prepared.jobs:
        if job.work.exists():
            discard(move_away(job.work))  # moved first: a partly deleted folder would pass for a finished job
    return published


def _dataset_entry(version: DatasetVersion) -> DatasetEntry:
    return DatasetEntry(name=version.name, version=version.number, content_sha256=version.manifest.content_sha256)


def summarise(prepared: Prepared, published: ModelVersion, cached: set[Role], wall_s: float) -> TrainSummary:
    manifest = published.manifest
    return TrainSummary(
        models=published.name,
        version=published.number,
        path=str(published.path),
        content_sha256=manifest.content_sha256,
        created=published.created,
        roles={role: _summarise_role(entry.stages, role in cached) for role, entry in manifest.roles.items()},
        skipped=prepared.skipped,
        wall_s=round(wall_s, 1),
    )


def _summarise_role(stages: tuple[StageResult, ...], cached: bool) -> RoleSummary:
    return RoleSummary(
        rows=sum(stage.rows for stage in stages),
        steps=sum(stage.steps for stage in stages),
        loss_first=stages[0].loss_first,
        loss_last=stages[-1].loss_last,
        cached=cached,
        stages={stage.stage: stage for stage in stages},
    )
