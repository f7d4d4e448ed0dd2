"""A whole run in this process: fill the store, build a version, sum up. What `malt run` does without Prefect."""

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from malt.config.roles import Role
from malt.config.spec import RunSpec
from malt.engine.build import Built, build
from malt.engine.fill import Ask, fill
from malt.engine.job import Job, check_models
from malt.engine.refresh import set_aside
from malt.engine.run import Filled, Run, new_run_name
from malt.engine.summary import RunSummary, summarise
from malt.llm.client.completers import EVERY_ROLE
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.usage import Tally, Usage
from malt.questions.question import Question
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, asks_judge


async def run_job(job: Job, run: Run | None = None, ask: Ask | None = None) -> RunSummary:
    """Ask for what is missing, then publish what the store holds whole. Waits while another run grows the dataset."""
    run, started = run or Run(), time.monotonic()
    check_models(job.spec)
    async with hold_run_lock(job.spec.name, job.settings, f"run {run.name}"):
        filled = await fill(job, run, ask)
        built = await asyncio.to_thread(build, job) if is_publishable(job.spec, filled.shortfall) else None
    return summarise(job, filled, built, time.monotonic() - started)


async def rerun_job(job: Job, questions: Sequence[Question], roles: Collection[Role], *, refresh: bool) -> RunSummary:
    """Ask some roles again about some questions, then publish; no roles means all.

    With `refresh` the stored answers of these roles are set aside first, and the roles after them follow; without it
    only what is missing is asked for.
    """
    started, run = time.time(), Run(roles=EVERY_ROLE if refresh or not roles else frozenset(roles))
    check_models(job.spec)
    async with hold_run_lock(job.spec.name, job.settings, f"run {run.name}"):
        if refresh:
            await asyncio.to_thread(set_aside, job.only(questions), roles or EVERY_ROLE, started)
        filled = await fill(job.only(questions), run)
        built = await asyncio.to_thread(build, job) if is_publishable(job.spec, filled.shortfall) else None
    return summarise(job, filled, built, time.time() - started)


async def assemble_job(job: Job, run: Run | None = None) -> RunSummary:
    """Publish what the store holds whole; nobody but the judge is asked, for the grades it has not given yet."""
    run, started = run or Run(), time.monotonic()
    async with hold_run_lock(job.spec.name, job.settings, f"run {run.name}"):
        judged = await fill_grades(job, run)
        built = await asyncio.to_thread(build, job)
    return summarise(job, assembled(job, judged, built), built, time.monotonic() - started)


async def fill_grades(job: Job, run: Run, ask: Ask | None = None) -> Filled:
    """Ask the judge, where there is one, for what it has not said yet; no other role is asked."""
    if not asks_judge(job.spec):
        return Filled(NOTHING_MISSING, Tally())
    return await fill(job, replace(run, roles=frozenset({Role.EVALUATOR})), ask)


def assembled(job: Job, judged: Filled, built: Built) -> Filled:
    """Return what an assembly used: what the judge was asked, else what the version took from the store."""
    if asks_judge(job.spec):
        return judged
    nodes = {} if built.version is None else built.version.manifest.counts.nodes
    return judged._replace(tally=Tally({role: Usage(cached_completions=nodes.get(role, 0)) for role in Role}))


def is_publishable(spec: RunSpec, shortfall: Shortfall) -> bool:
    """Whether what the store holds now is to become a version."""
    return shortfall == NOTHING_MISSING or (spec.run.on_incomplete == "publish" and shortfall.waits is None)


async def run_pilot(job: Job, questions: int) -> Shortfall:
    """Ask for the trees of so many questions, spread evenly over all; the store keeps what they gave."""
    chosen, name = spread(job.questions, questions), f"{new_run_name()}-pilot"
    check_models(job.spec)
    async with hold_run_lock(job.spec.name, job.settings, f"pilot {name}"):
        return (await fill(job.only(chosen), Run(name))).shortfall


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """Pick questions at even distances: a file is often sorted by how hard they are."""
    taken = min(count, len(questions))
    return [questions[place * len(questions) // taken] for place in range(taken)]
