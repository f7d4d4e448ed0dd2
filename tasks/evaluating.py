"""Evaluating under Prefect: one task run asks, another publishes, and artifacts show the result."""

import asyncio

from prefect import task
from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from malt.config.settings import Settings
from malt.evaluation.card import render_artifact
from malt.evaluation.evaluate import EvaluationBuilt, EvaluationFill, build, conclude, fill
from malt.evaluation.job import EvaluationJob
from malt.evaluation.version import EvaluationVersion
from tasks.artifacts import leave_markdown, tell_published
from tasks.publishing import leave_failures


@task(name="answer questions", task_run_name="answer {name}", cache_policy=NO_CACHE, persist_result=False)
async def answer_questions(name: str, job: EvaluationJob, settings: Settings, run: str) -> EvaluationFill:  # noqa: ARG001 - names the task run
    """Ask for every system's answers that the store lacks."""
    return await fill(job, settings, run)


@materialize(
    "malt://evaluations/any",
    by="malt",
    name="publish evaluation",
    task_run_name="publish {name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def publish_evaluation(name: str, job: EvaluationJob, settings: Settings) -> EvaluationBuilt:  # noqa: ARG001 - names the task run
    """Build a version from the store, in a thread: `build` runs an event loop of its own."""
    built = await asyncio.to_thread(build, job, settings)
    if built.version is not None:
        tell_published(built.version)
    return built


async def end(filled: EvaluationFill, built: EvaluationBuilt | None) -> State:
    """Return the flow's final state: `Failed` if something is missing, so that the UI offers *Retry*."""
    done = conclude(filled, built)
    if done.version is not None:
        await show_figures(done.version)
    await leave_failures(done.failures, f"{done.evaluation}-evaluation-failed-branches")
    state = Failed if done.exit_code else Completed
    return state(message=done.sentence, data=done)


async def show_figures(version: EvaluationVersion) -> None:
    """Create an artifact of the figures and the report's path."""
    text = render_artifact(version.manifest, version.summary, version.path)
    await leave_markdown(text, f"{version.name}-evaluation", f"the figures of {version.reference}")
