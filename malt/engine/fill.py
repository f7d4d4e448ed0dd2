"""Filling the store: ask for the samples that it lacks of a job's trees, directly, in batches or by Prefect's tasks."""

import asyncio
from collections.abc import Awaitable, Callable

from malt.concurrency import gather_all, run_to_end
from malt.engine.batch_mode import ask_in_batches
from malt.engine.job import Job
from malt.engine.run import Filled, Run, admit_trees, asker_for, merge
from malt.errors import RunStopped
from malt.llm.budget import Tally
from malt.llm.client.session import STOP_SECONDS
from malt.llm.store.database import expect_store
from malt.questions.question import Question
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, ask_all
from malt.trees.replay import MissingQuestions

BATCH = 50
"""Questions in a batch of direct requests; their stored samples are read together."""
AT_ONCE = 4
"""Batches in flight in one process; each holds many requests, so few are enough."""


Ask = Callable[[Job, MissingQuestions, Run], Awaitable[Filled]]
"""Function that makes the requests of the missing questions: in this process, in batches, or by Prefect's tasks."""


async def fill(job: Job, run: Run, ask: Ask | None = None) -> Filled:
    """Ask for all samples that the store lacks: of the job's trees, and of the judge for their grades.

    Questions with whole trees are skipped; their samples count as cached. Without `ask` the spec's mode decides:
    directly or in batches. Raises for faults of the job (`ConfigError` for a rejected key); a limit that was reached
    is reported in `shortfall.stopped`.
    """
    if ask is None:
        ask = ask_in_batches if job.spec.run.mode == "batch" else ask_directly
    missing = MissingQuestions(job.questions, job.source, run.tally)
    filled = await ask(job, missing, run)
    return merge([filled, Filled(NOTHING_MISSING, missing.stored)])


async def ask_directly(job: Job, missing: MissingQuestions, run: Run) -> Filled:
    """Ask in this process, a few batches of questions at a time; after a stop no further batch starts."""
    batches, lock = missing.batches(BATCH), asyncio.Lock()
    parts: list[Filled] = []

    async def take_batch() -> list[Question] | None:
        async with lock:
            return await run_to_end(lambda: next(batches, None), missing.stop, STOP_SECONDS)

    async def fill_batches() -> None:
        while (batch := await take_batch()) is not None:
            parts.append(await asyncio.to_thread(fill_batch, job.only(batch), run))
            if parts[-1].shortfall.stopped:
                missing.stop()
                return

    await gather_all(fill_batches() for _ in range(AT_ONCE))
    return merge(parts)


def fill_batch(job: Job, run: Run) -> Filled:
    """Ask for all samples of a part of a job. Call it from any thread or process, but not from the session's loop."""
    expect_store(job.settings.store)
    try:
        ask = asker_for(job, run)
        admit = admit_trees(ask, job.spec, job.prompts)
        shortfall = ask.session.run(ask_all(job.questions, job.inputs(ask), admit))
    except RunStopped as stop:  # the run was stopped before this part started
        return Filled(Shortfall((), str(stop)), Tally())
    return Filled(shortfall, Tally(ask.tally.roles))
