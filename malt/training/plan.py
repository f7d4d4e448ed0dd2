"""What training a version would take: rows and tokens as counted, memory and time as reckoned from a short probe."""

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
from malt.training.run import known_role, nothing_to_train, prepare

_ADAM_BYTES = 16
"""Of a trained number: itself, its gradient and Adam's two averages, as 32-bit numbers."""
_EFFICIENCY = 0.5
"""Of the probe's speed that training reaches; norms, attention and the output layer take the rest."""


class StageRowsPlan(BaseModel):
    """How much one stage would train on."""

    rows: int
    median: int
    longest: int
    """Tokens of the longest row, answer included."""
    max_length: int
    tokens: int
    """Of the rows to be trained, once each."""
    steps: int


class StagePlan(StageRowsPlan):
    """What training one stage would take."""

    trained: int
    lost: dict[str, int]
    refused: str | None
    """Why it would not be trained as declared."""
    shortest: int
    memory_gb: float
    seconds: float


class RoleTrainingPlan(BaseModel):
    """What training one role would take."""

    known: bool
    """A model version has it: nothing would be trained."""
    stages: dict[str, StagePlan]


class RoleRowsPlan(BaseModel):
    """How much one role would train on."""

    stages: dict[Stage, StageRowsPlan]


class RowsPlan(BaseModel):
    """What `malt train --plan` says without the packages that train: lengths are as the dataset counted them."""

    models: str
    dataset: str
    base: str
    skipped: list[str]
    roles: dict[Role, RoleRowsPlan]
    missing: list[str]
    """Packages that the rest needs."""


class TrainPlan(BaseModel):
    """What `malt train --plan` says."""

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
    """Of what would be trained; reckoned, and easily wrong by half."""


def plan(version: DatasetVersion, spec: TrainSpec, settings: Settings) -> TrainPlan:
    """Quote training a version. Trains nothing, and writes nothing but the unpacked base and a log."""
    check_installed()  # before a base is downloaded
    prepared = prepare(version, spec, settings)
    events = list[Mapping[str, Any]]()
    run_jobs("plan", prepared.jobs, events.append)
    told = {(event["role"], event["stage"]): event for event in events if event["event"] == "measured"}
    [facts] = [event for event in events if event["event"] == "facts"]
    roles = {
        job.role.value: RoleTrainingPlan(
            known=known_role(job, prepared) is not None,
            stages={stage: _plan_stage(job, told[job.role, stage], facts) for stage in job.stages},
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
    """Say how many rows training has, and about how long they are. Raises `NothingToTrain`."""
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


def _plan_stage(job: RoleJob, told: Mapping[str, Any], facts: Mapping[str, Any]) -> StagePlan:
    stage = told["stage"]
    settings = job.train.settings_of(stage)
    operations = settings.epochs * told["tokens"] * _count_work(job, stage, facts)
    return StagePlan(
        **{name: told[name] for name in ("trained", "lost", "refused", "shortest", "median", "longest", "tokens")},
        rows=job.files[stage].rows,
        max_length=settings.max_length,
        steps=count_steps(settings, told["trained"]),
        memory_gb=round(_count_memory(job, settings, told, facts) / 1e9, 1),
        seconds=round(operations / facts["flops"] / _EFFICIENCY, 1),
    )


def _count_work(job: RoleJob, stage: str, facts: Mapping[str, Any]) -> float:
    """Return the floating-point operations that a token takes: forward, backward, and the reference's forward."""
    forward: float = 2 * facts["parameters"]
    depth = facts["layers"]
    upper = min(job.train.lora.layers or depth, depth) / depth
    backward = forward * (upper if job.train.adapter == "lora" else 2)
    again = forward if job.train.gradient_checkpointing else 0
    return forward + backward + again + (forward if stage == "dpo" else 0)


def _count_memory(job: RoleJob, settings: StageSettings, told: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """Return the bytes that a stage takes: weights, what is trained of them, and what a batch leaves for backward."""
    size = 4 if job.train.adapter == "full" or job.train.dtype == "float32" else 2
    weights = facts["parameters"] * size * (2 if told["stage"] == "dpo" and job.train.adapter == "full" else 1)
    trained = facts["trainable"] * _ADAM_BYTES
    texts = 2 if told["stage"] == "dpo" else 1
    at_once = min(settings.rows_at_once or settings.batch_size, settings.batch_size, told["trained"])
    tokens = at_once * texts * min(told["longest"], settings.max_length)
    layers = 1 if job.train.gradient_checkpointing else min(job.train.lora.layers or facts["layers"], facts["layers"])
    kept = layers * (14 * facts["hidden"] + 6 * facts["intermediate"]) * 4
    return float(weights + trained + tokens * kept + facts["resident"])
