"""Flow `generate`: questions -> trees -> dataset version. A rerun asks only for what is missing."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from prefect import allow_failure, flow, get_run_logger, unmapped
from prefect.client.schemas.objects import State
from prefect.context import SyncClientContext
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.executors import ask_in_shards
from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from malt.engine.build import RunSummary
from malt.engine.fill import BATCH, fill
from malt.engine.job import Job, check_models, list_models, read_job
from malt.engine.run import Run
from malt.engine.runner import is_publishable
from malt.llm.batch.api import is_asked_in_batches
from malt.questions.question import Question
from malt.trees.growth import requests_per_question
from tasks.artifacts import show_progress, tag_by_spec
from tasks.growing import (
    Branch,
    Grower,
    Grown,
    by_question,
    children_of,
    collect,
    expand,
    grade,
    with_block_keys,
)
from tasks.publishing import end_flow, publish
from tasks.run_lock import close_after_crash, only_run_of
from tasks.slots import share_endpoints
from tasks.stored_answers import save_answer_storage

BRANCH_QUESTIONS, BRANCH_TASK_RUNS = 12, 2_000
"""Most questions and task runs for which `tracking = "auto"` makes a task run per branch."""
QUESTION_TASK_RUNS = 200
"""Most questions for which it makes a task run per question."""
BRANCHES_AT_ONCE: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=256)


@flow(name="generate", flow_run_name="{spec.name}", task_runner=BRANCHES_AT_ONCE, on_crashed=[close_after_crash])
async def generate(spec: RunSpec) -> State[RunSummary]:
    """Grow and grade a tree for every question, then publish the complete trees."""
    return await grow_alone(spec)


async def grow_alone(spec: RunSpec) -> State[RunSummary]:
    """Grow a dataset under its lock: other runs of it wait."""
    await tag_by_spec(spec)
    async with only_run_of(spec.name) as name:
        job = read_job(spec)  # under the lock: a run that waited must read the question file as it is now
        return await grow_and_publish(job, job.questions, Run(name))


async def grow_and_publish(job: Job, questions: Sequence[Question], run: Run) -> State[RunSummary]:
    """Ask for what the trees of these questions lack, then publish the complete trees of all questions."""
    started = time.monotonic()
    spec = await with_block_keys(job.spec)
    check_models(spec)
    direct = [model for model in list_models(spec) if not is_asked_in_batches(model, spec)]
    async with share_endpoints(spec, direct) as limited:
        part = replace(job.only(questions), spec=limited)
        get_run_logger().info("%s: growing %s trees, %s", spec.name, f"{len(questions):,}", describe_tracking(part))
        async with show_progress(part, run):
            grow = grow_branches if tracking_of(part) == "branch" else grow_shards
            filled, trees = await grow(part, run)
    built = await publish(job, trees) if is_publishable(job.spec, filled.shortfall) else None
    return await end_flow(job, filled, built, time.monotonic() - started)


async def grow_branches(job: Job, run: Run) -> Grown:
    """Map task runs over the branches of all trees; each starts as soon as its own parent is complete."""
    grower, storage = Grower(job, run), await save_answer_storage()
    shared, expand_stored = unmapped(grower), expand.with_options(result_storage=storage)
    branches = [Branch(question) for question in job.questions]
    with SyncClientContext.get_or_create():  # else each task run would create its own client, which takes 25 ms
        answers = expand_stored.map(branches, unmapped(None), shared)
        expanded = [*zip(branches, answers, strict=True)]
        for _ in PLAYERS[1:]:
            branches, parents = children_of(branches, answers, job.spec)
            answers = expand_stored.map(branches, allow_failure(parents), shared)
            expanded += zip(branches, answers, strict=True)
        trees = grade.map(job.questions, allow_failure(by_question(answers, len(job.questions))), shared)
        return await collect(expanded, trees, grower)


async def grow_shards(job: Job, run: Run) -> Grown:
    """Grow incomplete trees in batches of questions or through batch APIs; their shapes need not be known before."""
    ask = partial(ask_in_shards, most=1 if tracking_of(job) == "question" else BATCH)
    return Grown(await fill(job, run, ask if job.spec.run.mode == "direct" else None), ())


def tracking_of(job: Job) -> Literal["branch", "question", "shard"]:
    """Return the unit of work of a task run: as declared, else the finest that a run's graph can still show.

    Always `shard` for adaptive growth (no shape to map), caps (trees begin one by one) and batch mode (asks by level).
    """
    spec, count = job.spec, len(job.questions)
    if spec.growth.mode == "adaptive" or spec.limits.capped or spec.run.mode == "batch":
        return "shard"
    if spec.run.tracking != "auto":
        return spec.run.tracking
    if count <= BRANCH_QUESTIONS and count * (sum(requests_per_question(spec).values()) + 1) <= BRANCH_TASK_RUNS:
        return "branch"
    return "question" if count <= QUESTION_TASK_RUNS else "shard"


def describe_tracking(job: Job) -> str:
    """Return the unit of work of a task run in words, for the log."""
    if job.spec.run.mode == "batch":
        return "level by level, through batch APIs"
    kind = tracking_of(job)
    return f"in batches of up to {BATCH}" if kind == "shard" else f"a task run a {kind}"
