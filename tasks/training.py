"""Training under Prefect: one task run per role, and an artifact of the figures."""

from typing import Any

from prefect import get_run_logger, task
from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from malt.config.roles import Role
from malt.errors import TrainingFailed
from malt.models.publishing import TrainedRole
from malt.models.version import ModelVersion
from malt.training.job import RoleJob
from malt.training.process import Stopper
from malt.training.run import Prepared, TrainSummary, publish, train_jobs
from tasks.artifacts import leave_markdown, tell_published

LOG_EVERY = 10
"""Steps between log lines."""


def inputs_of_role(context: TaskRunContext, parameters: dict[str, Any]) -> str:  # noqa: ARG001 - Prefect's signature
    """Return the cache key of a role's training: the digest of base, rows, stages and settings."""
    return f"train-{parameters['job'].inputs_sha256}"


def may_pass(task: Any, run: Any, state: Any) -> bool:  # noqa: ANN401, ARG001 - Prefect's signature
    """Whether a retry may succeed: a killed process resumes from its checkpoint; a refusal stays one."""
    try:
        state.result()
    except TrainingFailed:
        return True
    except BaseException:
        return False
    return False


@task(
    task_run_name="train {job.role}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=may_pass,
    cache_key_fn=inputs_of_role,
    persist_result=True,
)
def train_role(job: RoleJob, stopper: Stopper) -> str:
    """Train one role in a process of its own; a retry resumes from the last checkpoint. Returns its inputs' digest."""
    log = get_run_logger()

    def tell(event: Any) -> None:  # noqa: ANN401 - an event of the training process
        if event["event"] == "step" and (event["step"] % LOG_EVERY == 1 or event["step"] == event["steps"]):
            log.info("%(role)s %(stage)s %(step)s/%(steps)s: loss %(loss).4f, %(left_s).0f s left", event)

    train_jobs([job], tell, stopper)
    return job.inputs_sha256


@materialize(
    "malt://models/any", by="malt", task_run_name="publish {name}", cache_policy=NO_CACHE, persist_result=False
)
def publish_models(name: str, prepared: Prepared, roles: dict[Role, TrainedRole]) -> ModelVersion:  # noqa: ARG001 - names the task run
    """Publish a model version of trained roles."""
    published = publish(prepared, roles)
    tell_published(published)
    return published


async def announce_models(summary: TrainSummary) -> None:
    """Create an artifact of a model version's figures."""
    lines = [
        f"| {role} | {name} | {stage.trained} | {stage.steps} | {stage.loss_first:.4f} | {stage.loss_last:.4f} |"
        for role, entry in summary.roles.items()
        for name, stage in entry.stages.items()
    ]
    head = "| role | stage | rows | steps | first loss | last loss |\n|---|---|---:|---:|---:|---:|"
    text = f"# models/{summary.models}@v{summary.version}\n\n- models: `{summary.path}`\n\n{head}\n" + "\n".join(lines)
    description = f"{summary.models}@v{summary.version}, trained in {summary.wall_s:.0f} s"
    await leave_markdown(text, f"{summary.models}-models", description)
