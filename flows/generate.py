"""questions -> trees -> dataset version. Run again, it asks only for what is missing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from math import ceil

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from flows.runners import crew_of
from malt.concurrency import run_to_end
from malt.config.settings import Settings
from malt.config.spec import Limits, Role, RunSpec
from malt.engine.batch_mode import ask_in_batches
from malt.engine.job import Inputs, check_models, read_inputs
from malt.engine.summary import RunSummary
from malt.engine.tree_cost import beginning
from malt.grading.judge import LLMEvaluator
from malt.llm.client.completers import EVERY_ROLE
from malt.llm.client.session import STOP_SECONDS, open_session
from malt.llm.usage import Tally
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question, requests_per_question
from malt.trees.missing import Lacking
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, grown, shortfall_of
from malt.trees.replay import Source
from malt.trees.tree import FailedBranch
from tasks.growing import BranchAsker, Grown, asker_of_run, grow_batch, keyed
from tasks.leasing import alone
from tasks.progress import progress
from tasks.publishing import ended, publish

BRANCH_TASK_RUNS = 2_000
"""Up to this many task runs, `tracking = "auto"` shows every branch."""
BATCH = 50
"""Questions in one `grow_batch`, where there are enough for every worker."""


@flow(name="generate", flow_run_name="{spec.name}")
async def generate(spec: RunSpec) -> State[RunSummary]:
    """Grow and grade a tree for every question, then publish what is complete."""
    async with alone(spec.name) as run:
        inputs = read_inputs(spec)  # not before: whoever waits publishes what is there when it begins
        return await grow_and_publish(inputs, spec, inputs.questions, run)


async def grow_and_publish(
    inputs: Inputs, spec: RunSpec, questions: list[Question], run: str, asks: frozenset[Role] = EVERY_ROLE
) -> State[RunSummary]:
    """Ask for what the trees of these questions lack, then publish what the store holds of all."""
    started, settings = time.monotonic(), Settings()
    check_models(await keyed(spec))
    grow_all = way_to_grow(spec, len(questions))
    get_run_logger().info("%s: growing %s trees, %s", spec.name, f"{len(questions):,}", told_of(grow_all))
    grown = await grow_all(inputs._replace(questions=questions), spec, settings, asks, run)
    version = None
    is_whole = grown.shortfall == NOTHING_MISSING
    if is_whole or (spec.run.on_incomplete == "publish" and grown.shortfall.waits is None):
        version, failures = await publish(inputs, spec, settings)
        if grown.shortfall.stopped is None:  # else nearly all is missing, and the reason is known
            grown = grown._replace(shortfall=Shortfall(failures, None))
    return await ended(spec, inputs, grown, version, time.monotonic() - started)


def way_to_grow(spec: RunSpec, questions: int) -> "GrowAll":
    """Return how the trees of so many questions are grown."""
    if spec.run.mode == "batch":
        return grow_by_level
    return grow_by_branch if tracks_branches(spec, questions) else grow_by_shard


def told_of(grow_all: "GrowAll") -> str:
    """Say in a log line what a task run is."""
    if grow_all is grow_by_level:
        return "level by level, through batch APIs"
    return "a task run a branch" if grow_all is grow_by_branch else f"in batches of up to {BATCH}"


def tracks_branches(spec: RunSpec, questions: int) -> bool:
    """Whether each branch gets a task run of its own: as declared, else while they stay few."""
    if spec.run.tracking != "auto":
        return spec.run.tracking == "branch"
    return questions * (sum(requests_per_question(spec).values()) + 1) <= BRANCH_TASK_RUNS


async def grow_by_branch(inputs: Inputs, spec: RunSpec, settings: Settings, asks: frozenset[Role], run: str) -> Grown:
    """Grow all trees at once; every expansion, and every tree's grading, is a task run."""
    spec = await keyed(spec)
    ask = asker_of_run(run, inputs.questions, spec, settings, asks)
    branches, begin = BranchAsker(ask), beginning(ask, spec, inputs.prompts)
    judge = LLMEvaluator.from_spec(spec.evaluator, inputs.prompts, ask)

    async def missing_of(question: Question) -> tuple[FailedBranch, ...]:
        async with begin(question):
            tree = await grown(question, spec, inputs.prompts, branches, judge)
            return await branches.grade(tree, spec, inputs.prompts)

    async with progress(spec.name, nodes_of(spec, inputs.questions), lambda: ask.tally.answers):
        return Grown(await shortfall_of(missing_of(question) for question in inputs.questions), ask.tally)


async def grow_by_shard(inputs: Inputs, spec: RunSpec, settings: Settings, asks: frozenset[Role], run: str) -> Grown:
    """Map `grow_batch` over batches of what lacks something; the task runner is the engine, on one machine or many."""
    is_here = spec.run.task_runner == "threads"
    crew = await asyncio.to_thread(crew_of, spec, settings, run)
    size = min(BATCH, ceil(len(inputs.questions) / (1 if is_here else len(crew.shares))))
    so_far = open_session(settings, spec.limits, run=run).tally if is_here else Tally()
    lacking = lacking_in(inputs, spec, settings, so_far)

    def submit(batch: Sequence[Question], share: Limits) -> PrefectFuture[Grown]:
        shared = spec.model_copy(update={"limits": share})
        taken = {"batch": batch, "spec": shared, "settings": settings, "asks": asks, "run": run}
        future: PrefectFuture[Grown] = crew.runner.submit(grow_batch, taken)
        return future

    def count(part: Grown) -> None:
        if not is_here:
            so_far.merge(part.tally)

    def work() -> list[Grown]:
        batches = lacking.batches(size)
        first = next(batches, None)
        return [] if first is None else crew.work(chain([first], batches), submit, count)

    def stop() -> None:
        lacking.stop()
        crew.stop()

    async with progress(spec.name, nodes_of(spec, inputs.questions), lambda: so_far.answers):
        return merged([*await run_to_end(work, stop, STOP_SECONDS + 1), Grown(NOTHING_MISSING, lacking.had)])


async def grow_by_level(inputs: Inputs, spec: RunSpec, settings: Settings, asks: frozenset[Role], run: str) -> Grown:
    """Ask for a level of all trees that lack something at a time, in batches."""
    spec = await keyed(spec)
    session = open_session(settings, spec.limits, run=run)
    lacking = lacking_in(inputs, spec, settings, session.tally)

    def look() -> list[Question]:
        found = {question.question_id for question in lacking}
        return [question for question in inputs.questions if question.question_id in found]

    async with progress(spec.name, nodes_of(spec, inputs.questions), lambda: session.tally.answers):
        questions = await run_to_end(look, lacking.stop, STOP_SECONDS)
        shortfall, tally = await ask_in_batches(questions, spec, inputs.prompts, session, run, asks)
    tally.merge(lacking.had)
    return Grown(shortfall, tally)


GrowAll = Callable[[Inputs, RunSpec, Settings, frozenset[Role], str], Awaitable[Grown]]


def lacking_in(inputs: Inputs, spec: RunSpec, settings: Settings, so_far: Tally) -> Lacking:
    """Return the questions to be grown; what the store has of the others is added to `so_far`."""
    source = Source(spec, inputs.prompts, settings.store, patience_s=settings.store_patience_s)
    return Lacking(inputs.questions, source, so_far)


def nodes_of(spec: RunSpec, questions: Sequence[Question]) -> int:
    """Nodes of all trees, once they are whole."""
    return len(questions) * sum(nodes_per_question(spec).values())


def merged(parts: Sequence[Grown]) -> Grown:
    """Put batches together."""
    tally = Tally()
    for part in parts:
        tally.merge(part.tally)
    failures = tuple(branch for part in parts for branch in part.shortfall.failures)
    stopped = next((part.shortfall.stopped for part in parts if part.shortfall.stopped), None)
    return Grown(Shortfall(failures, stopped), tally)
