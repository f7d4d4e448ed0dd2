"""RoleJob: all that one role's training depends on, and what came of it. It travels to the training process as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from malt.canonical_json import digest
from malt.config.roles import PLAYERS, Role
from malt.config.train import Stage, StageSettings, TrainSpec
from malt.datasets.rows.tables import role_file
from malt.datasets.version.dataset_version import DatasetVersion
from malt.models.manifest import Sample, StageResult
from malt.training.base import Base

WHAT_CHANGES_NO_WEIGHT = {"name", "base", "checkpoint_s", *PLAYERS}
LOCK = ".lock"
"""Held by the process that trains."""
RESULT_FILE = "result.json"
BASES = "bases"
"""Folder of unpacked bases, beside those of jobs."""
FINAL = "final"
"""Folder of a stage's weights, once they are trained."""


class StageRows(BaseModel):
    """Dataset versions' rows for one stage."""

    model_config = ConfigDict(frozen=True)

    paths: tuple[Path, ...]
    """A file a version, in the versions' order."""
    rows: int
    sha256: str
    """Of the rows' values."""


class RoleJob(BaseModel):
    """One role's training."""

    model_config = ConfigDict(frozen=True)

    role: Role
    base: Base
    stages: tuple[Stage, ...]
    files: dict[Stage, StageRows]
    train: TrainSpec
    bases_dir: Path
    work: Path
    """Folder of its own: checkpoints, and in the end what goes into the model version."""

    @property
    def done(self) -> Path:
        """Where its results are, once all are there."""
        return self.work / "done"


class RoleResult(BaseModel):
    """What came of a job."""

    stages: tuple[StageResult, ...]
    samples: tuple[Sample, ...]
    inputs_sha256: str
    libraries: dict[str, str]


def lock_of_base(folder: Path) -> Path:
    """Return the file that processes lock which use an unpacked base: beside it, so that it outlasts the folder."""
    return Path(f"{folder}{LOCK}")


class Skipped(NamedTuple):
    """A stage that a version has no rows for."""

    role: Role
    stage: Stage


def jobs_for(
    versions: Sequence[DatasetVersion], train: TrainSpec, base: Base, training_dir: Path, bases_dir: Path
) -> list[RoleJob]:
    """Return a job for every role that has a stage with rows in any of the versions."""
    jobs = []
    for role in PLAYERS:
        files = {stage: stage_rows(versions, role, stage) for stage in stages_of(train, role)}
        stages = tuple(stage for stage, file in files.items() if file.rows)
        if stages:
            inputs = inputs_of(role, stages, files, train, base)
            work = training_dir / f"{role}-{inputs[:16]}"
            jobs.append(
                RoleJob(role=role, base=base, stages=stages, files={stage: files[stage] for stage in stages},
                        train=train, bases_dir=bases_dir, work=work)
            )  # fmt: skip
    return jobs


def skipped(versions: Sequence[DatasetVersion], train: TrainSpec) -> list[Skipped]:
    """Return the declared stages that the versions have no rows for."""
    return [
        Skipped(role, stage)
        for role in PLAYERS
        for stage in stages_of(train, role)
        if not stage_rows(versions, role, stage).rows
    ]


def stages_of(train: TrainSpec, role: Role) -> tuple[Stage, ...]:
    """Return a role's declared stages."""
    stages: tuple[Stage, ...] = getattr(train, role.value)
    return stages


def stage_rows(versions: Sequence[DatasetVersion], role: Role, stage: Stage) -> StageRows:
    """Describe the versions' training rows for a stage."""
    path = role_file(stage, role)
    entries = {version.path / path: version.manifest.files[path] for version in versions if has_rows(version, path)}
    digests = [entry.rows_sha256 or "" for entry in entries.values()]
    sha256 = digests[0] if len(digests) == 1 else digest([*digests])
    return StageRows(paths=tuple(entries), rows=sum(entry.rows or 0 for entry in entries.values()), sha256=sha256)


def has_rows(version: DatasetVersion, path: str) -> bool:
    """Whether a version has rows in a file."""
    entry = version.manifest.files.get(path)
    return entry is not None and bool(entry.rows)


def inputs_of(
    role: Role, stages: tuple[Stage, ...], files: dict[Stage, StageRows], train: TrainSpec, base: Base
) -> str:
    """Return the digest of all that makes a role's weights what they are, the machine and its libraries apart."""
    unused = {stage for stage in ("sft", "dpo") if stage not in stages}
    settings: dict[str, Any] = train.model_dump(mode="json", exclude=WHAT_CHANGES_NO_WEIGHT | unused)
    return digest(
        {
            "role": role.value,
            "stages": list(stages),
            "rows": {stage: files[stage].sha256 for stage in stages},
            "base": base.sha256,
            "settings": settings,
        }
    )


def settings_of(job: RoleJob, stage: Stage) -> StageSettings:
    """Return how a stage trains."""
    return job.train.sft if stage == "sft" else job.train.dpo


def inputs_sha256(job: RoleJob) -> str:
    """Return the digest of a job's inputs."""
    return inputs_of(job.role, job.stages, job.files, job.train, job.base)
