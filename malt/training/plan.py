"""Quote for training a version: rows and tokens are counted; memory and time are estimated from a short probe."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import Stage, StageSettings, TrainSpec
from malt.datasets.measures import LengthCounts
from malt.datasets.version.dataset_version import DatasetVersion
from malt.training.job import ANSWERS, RoleJob, StageRows, find_rows, name_skipped
from malt.training.process import check_installed, list_missing, run_jobs
from malt.training.run import find_trained_role, nothing_to_train, prepare

_ADAM_BYTES = 16
"""Bytes for each trained parameter: its value, its gradient and Adam's two moments, as 32-bit floats."""
_EFFICIENCY = 0.5
"""Share of the probe's speed that training reaches; norms, attention and the output layer take the rest."""


class StageRowsPlan(BaseModel):
    """Rows and tokens that one stage would train on."""

    rows: int
    median: int
    longest: int
    """Tokens of the longest row, answer included."""
    max_length: int
    tokens: int
    """Tokens of the rows to train on, in one epoch."""
    steps: int


class StagePlan(StageRowsPlan):
    """Quote for training one stage."""

    trained: int
    lost: dict[str, int]
    refused: str | None
    """Why the stage would not be trained as declared; None where it would."""
    shortest: int
    memory_gb: float
    seconds: float


class RoleTrainingPlan(BaseModel):
    """Quote for training one role."""

    known: bool
    """Whether a model version has the role already, so that nothing would be trained."""
    stages: dict[str, StagePlan]


class RoleRowsPlan(BaseModel):
    """Rows and tokens that one role would train on."""

    stages: dict[Stage, StageRowsPlan]


class RowsPlan(BaseModel):
    """Output of `malt train --plan` where training packages are missing; lengths come from the dataset's manifest."""

    models: str
    dataset: str
    base: str
    skipped: list[str]
    roles: dict[Role, RoleRowsPlan]
    missing: list[str]
    """Packages that a full plan needs."""


class TrainPlan(BaseModel):
    """Output of `malt train --plan`."""

    models: str
    dataset: str
    base: str
    base_sha256: str
    parameters: int
    trainable: int
    device: str
    roles: dict[str, RoleTrainingPlan]
    skipped: list[str]
    memory_gb: float
    seconds: float
    """Estimated seconds of training; easily wrong by half."""


def plan(version: DatasetVersion, spec: TrainSpec, settings: Settings) -> TrainPlan:
    """Quote training a version. Trains nothing; writes only the unpacked base, the jobs' files and a log."""
    check_installed()  # before a base is downloaded
    prepared = prepare(version, spec, settings)
    events = list[Mapping[str, Any]]()
    run_jobs("plan", prepared.jobs, events.append)
    measured = {(event["role"], event["stage"]): event for event in events if event["event"] == "measured"}
    [facts] = [event for event in events if event["event"] == "facts"]
    roles = {
        job.role.value: RoleTrainingPlan(
            known=find_trained_role(job, prepared) is not None,
            stages={stage: _plan_stage(job, measured[job.role, stage], facts) for stage in job.stages},
        )
        for job in prepared.jobs
    }
    new = [stage for role in roles.values() if not role.known for stage in role.stages.values()]
    return TrainPlan(
        models=prepared.name,
        dataset=version.reference,
        base=prepared.base.name,
        base_sha256=prepared.base.sha256,
        parameters=facts["parameters"],
        trainable=facts["trainable"],
        device=facts["device"],
        roles=roles,
        skipped=prepared.skipped,
        memory_gb=max((stage.memory_gb for stage in new), default=0.0),
        seconds=round(sum(stage.seconds for stage in new), 1),
    )


def plan_rows(version: DatasetVersion, spec: TrainSpec) -> RowsPlan:
    """Count the rows of every stage, and estimate their tokens. Raises `NothingToTrain`."""
    found = find_rows([version], spec)
    stages = {role: _plan_rows_of(version, spec, role, rows) for role, rows in found.items()}
    if not any(stages.values()):
        raise nothing_to_train(version)
    return RowsPlan(
        models=spec.name or version.name,
        dataset=version.reference,
        base=spec.base,
        skipped=name_skipped([version], spec),
        roles={role: RoleRowsPlan(stages=planned) for role, planned in stages.items() if planned},
        missing=list_missing(),
    )


def _plan_rows_of(
    version: DatasetVersion, spec: TrainSpec, role: Role, found: Mapping[Stage, StageRows]
) -> dict[Stage, StageRowsPlan]:
    lengths, planned = version.manifest.lengths.get(role, {}), dict[Stage, StageRowsPlan]()
    for stage, rows in ((stage, entry.rows) for stage, entry in found.items() if entry.rows):
        long, settings = lengths.get(stage, LengthCounts()), spec.settings_of(stage)
        planned[stage] = StageRowsPlan(
            rows=rows,
            median=long.median,
            longest=long.longest,
            max_length=settings.max_length,
            tokens=round(rows * long.mean * len(ANSWERS[stage])),
            steps=count_steps(settings, rows),
        )
    return planned


def count_steps(settings: StageSettings, rows: int) -> int:
    return round(settings.epochs * -(-rows // settings.batch_size))


def _plan_stage(job: RoleJob, found: Mapping[str, Any], facts: Mapping[str, Any]) -> StagePlan:
    stage = found["stage"]
    settings = job.train.settings_of(stage)
    operations = settings.epochs * found["tokens"] * _count_work(job, stage, facts)
    return StagePlan(
        **{name: found[name] for name in ("trained", "lost", "refused", "shortest", "median", "longest", "tokens")},
        rows=job.files[stage].rows,
        max_length=settings.max_length,
        steps=count_steps(settings, found["trained"]),
        memory_gb=round(_count_memory(job, settings, found, facts) / 1e9, 1),
        seconds=round(operations / facts["flops"] / _EFFICIENCY, 1),
    )


def _count_work(job: RoleJob, stage: str, facts: Mapping[str, Any]) -> float:
    """Return the floating-point operations for one token: each forward and backward, and for DPO the reference's."""
    forward: float = 2 * facts["parameters"]
    depth = facts["layers"]
    upper = min(job.train.lora.layers or depth, depth) / depth
    backward = forward * (upper if job.train.adapter == "lora" else 2)
    again = forward if job.train.gradient_checkpointing else 0
    return forward + backward + again + (forward if stage == "dpo" else 0)


def _count_memory(job: RoleJob, settings: StageSettings, found: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """Return the bytes that a stage needs: weights, optimiser state, and a batch's activations."""
    size = 4 if job.train.adapter == "full" or job.train.dtype == "float32" else 2
    weights = facts["parameters"] * size * (2 if found["stage"] == "dpo" and job.train.adapter == "full" else 1)
    trained = facts["trainable"] * _ADAM_BYTES
    texts = 2 if found["stage"] == "dpo" else 1
    at_once = min(settings.rows_at_once or settings.batch_size, settings.batch_size, found["trained"])
    tokens = at_once * texts * min(found["longest"], settings.max_length)
    layers = 1 if job.train.gradient_checkpointing else min(job.train.lora.layers or facts["layers"], facts["layers"])
    kept = layers * (14 * facts["hidden"] + 6 * facts["intermediate"]) * 4
    return float(weights + trained + tokens * kept + facts["resident"])
