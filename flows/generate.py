"""questions -> trees -> dataset version. Run again, it asks only for what is missing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import ceil
from typing import NamedTuple

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from flows.runners import crew_of
from malt.concurrency import to_its_end
from malt.config.spec import Limits, RunSpec
from malt.engine.fill import BATCH, fill
from malt.engine.job import Job, check_models, read_job
from malt.engine.run import Filled, Run, asker_for, merge
from malt.engine.runner import is_publishable
from malt.engine.summary import RunSummary
from malt.engine.tree_cost import admit_trees
from malt.llm.client.session import STOP_SECONDS
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question, requests_per_question
from malt.trees.pipeline import gather_shortfall, grow_tree, judge_asking
from malt.trees.replay import MissingQuestions
from malt.trees.tree import FailedBranch
from tasks.growing import BranchAsker, grow_batch, with_block_keys
from tasks.leasing import alone
from tasks.progress import progress
from tasks.publishing import ended, publish

BRANCH_TASK_RUNS = 2_000
"""Up to this many task runs, `tracking = "auto"` shows every branch."""


@flow(name="generate", flow_run_name="{spec.name}")
async def generate(spec: RunSpec) -> State[RunSummary]:
    """Grow and grade a tree for every question, then publish what is complete."""
    async with alone(spec.name) as name:
        job = read_job(spec)  # not before: whoever waits publishes what is there when it begins
        return await grow_and_publish(job, job.questions, Run(name))


async def grow_and_publish(job: Job, questions: Sequence[Question], run: Run) -> State[RunSummary]:
    """Ask for what the trees of these questions lack, then publish what the store holds of all."""
    started, spec = time.monotonic(), job.spec
    asked = replace(job.only(questions), spec=await with_block_keys(spec))
    check_models(asked.spec)
    way = way_to_grow(spec, len(questions))
    get_run_logger().info("%s: growing %s trees, %s", spec.name, f"{len(questions):,}", way.told)
    async with progress(spec.name, nodes_of(spec, questions), lambda: run.tally.answers):
        filled = await way.fill(asked, run)
    built = await publish(job) if is_publishable(spec, filled.shortfall) else None
    return await ended(job, filled, built, time.monotonic() - started)


class Way(NamedTuple):
    """How trees are grown, and that in words."""

    fill: Callable[[Job, Run], Awaitable[Filled]]
    told: str


def way_to_grow(spec: RunSpec, questions: int) -> Way:
    """Return how the trees of so many questions are grown."""
    if spec.run.mode == "batch":
        return Way(fill, "level by level, through batch APIs")
    if tracks_branches(spec, questions):
        return Way(grow_by_branch, "a task run a branch")
    return Way(partial(fill, ask=ask_in_shards), f"in batches of up to {BATCH}")


def tracks_branches(spec: RunSpec, questions: int) -> bool:
    """Whether each branch gets a task run of its own: as declared, else while they stay few."""
    if spec.run.tracking != "auto":
        return spec.run.tracking == "branch"
    return questions * (sum(requests_per_question(spec).values()) + 1) <= BRANCH_TASK_RUNS


async def grow_by_branch(job: Job, run: Run) -> Filled:
    """Grow all trees at once; every expansion, and every tree's grading, is a task run."""
    spec, prompts, ask = job.spec, job.prompts, asker_for(job, run)
    branches, admit = BranchAsker(ask), admit_trees(ask, spec, prompts)
    judge = judge_asking(ask, spec, prompts)

    async def missing_of(question: Question) -> tuple[FailedBranch, ...]:
        async with admit(question):
            tree = await grow_tree(question, spec, prompts, branches, judge)
            return await branches.grade(tree, spec, prompts)

    return Filled(await gather_shortfall(missing_of(question) for question in job.questions), ask.tally)


async def ask_in_shards(job: Job, missing: MissingQuestions, run: Run) -> Filled:
    """Map `grow_batch` over batches of what lacks something; the task runner is the engine, on one machine or many."""
    spec = job.spec
    is_here = spec.run.task_runner == "threads"
    crew = await asyncio.to_thread(crew_of, spec, job.settings, run.name)
    size = min(BATCH, ceil(len(job.questions) / (1 if is_here else len(crew.shares))))

    def submit(batch: Sequence[Question], share: Limits) -> PrefectFuture[Filled]:
        part = replace(job.only(batch), spec=spec.model_copy(update={"limits": share}))
        first = batch[0].question_id
        future: PrefectFuture[Filled] = crew.runner.submit(grow_batch, {"first": first, "job": part, "run": run})
        return future

    def count(part: Filled) -> None:
        if not is_here:
            run.tally.merge(part.tally)

    def work() -> list[Filled]:
        batches = missing.batches(size)
        first = next(batches, None)
        return [] if first is None else crew.work(chain([first], batches), submit, count)

    def stop() -> None:
        missing.stop()
        crew.stop()

    return merge(await to_its_end(work, stop, STOP_SECONDS + 1))


def nodes_of(spec: RunSpec, questions: Sequence[Question]) -> int:
    """Nodes of all trees, once they are whole."""
    return len(questions) * sum(nodes_per_question(spec).values())
