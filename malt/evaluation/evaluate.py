"""Evaluating: ask for what the store lacks of every system's answers, then publish what it holds."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from malt.config.loader import load_spec
from malt.config.settings import Settings
from malt.config.spec import Role, RunSpec
from malt.engine.tree_cost import admit_trees
from malt.errors import NothingToPublish, RunStopped
from malt.evaluation.answers import Answered, ask_answers, stored_answers
from malt.evaluation.job import EvaluationJob, check_systems, read_evaluation
from malt.evaluation.publish import publish
from malt.evaluation.result import Evaluated
from malt.evaluation.systems import Lineup, with_samples
from malt.evaluation.table import table_of
from malt.evaluation.version import EvaluationVersion
from malt.llm.client.completers import make_completer
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.client.session import open_session
from malt.llm.store.samples import Store
from malt.llm.usage import Tally
from malt.trees.tree import FailedBranch

MOST_VOTES = 64
"""Of a single agent with as many tokens as the pipeline."""


def evaluate(spec: RunSpec | str | Path, overrides: Sequence[str] = ()) -> EvaluationVersion:
    """Compare a config's systems on held-out questions, and return the evaluation version.

    Takes a `RunSpec` with an `evaluate` part, or the path of a config and overrides such as `evaluate.chains=5`. Asks
    for what the store lacks. Raises what a run raises, `NothingToPublish` where nothing could be had.
    """
    declared = spec if isinstance(spec, RunSpec) else load_spec(Path(spec), overrides)
    job = read_evaluation(declared)
    check_systems(job)
    done = asyncio.run(evaluate_job(job, Settings(), name_run()))
    if done.stopped is not None:
        raise RunStopped(done.stopped)
    if done.version is None:
        raise NothingToPublish(f"no evaluation of {declared.name!r} was made: no question was answered whole")
    return done.version


def name_run() -> str:
    """Name a run."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{uuid4().hex[:8]}"


async def evaluate_job(job: EvaluationJob, settings: Settings, run: str) -> Evaluated:
    """Ask for what the store lacks, then publish what it holds of all systems; one evaluation of a name at a time."""
    started = time.monotonic()
    async with hold_run_lock(f"evaluation-{job.spec.name}", settings, f"run {run}"):
        filled = await fill(job, settings, run)
        if filled.stopped is not None:
            return Evaluated.of(job, None, filled.failures, filled.tally, started, filled.stopped)
        version, failures = await asyncio.to_thread(build, filled.job, settings)
    return Evaluated.of(job, version, failures, filled.tally, started)


class Filled(NamedTuple):
    """What the store has got: the job, with votes added where tokens are to meet, and what is missing."""

    job: EvaluationJob
    failures: tuple[FailedBranch, ...]
    stopped: str | None
    tally: Tally


async def fill(job: EvaluationJob, settings: Settings, run: str) -> Filled:
    """Ask for all chains, then for the votes that a single agent needs to write as much."""
    session = open_session(settings, job.spec.limits, run=run)
    ask = make_completer(session, [question.question_id for question in job.questions], run=run)
    begin = admit_trees(ask, job.spec, job.prompts)
    shortfall = await session.call(ask_answers(job.questions, job.lineups, job.prompts, ask, begin))
    if job.evaluate.equal_tokens and shortfall.stopped is None:
        job = job._replace(lineups=[*job.lineups, *await asyncio.to_thread(voters, job, settings)])
        votes = [lineup for lineup in job.lineups if lineup.kind == "votes"]
        shortfall = await session.call(ask_answers(job.questions, votes, job.prompts, ask, begin))
    return Filled(job, shortfall.failures, shortfall.stopped, ask.tally)


def build(job: EvaluationJob, settings: Settings) -> tuple[EvaluationVersion | None, tuple[FailedBranch, ...]]:
    """Publish what the store holds; None where it holds no answer."""
    found = read_back(job, job.lineups, settings)
    failures = tuple(dict.fromkeys(failure for each in found for failure in each.failures))
    answers = [answer for each in found for answer in each.answers]
    if all(answer.generator is None for answer in answers):
        return None, failures
    return publish(job, table_of(answers), failures, settings), failures


def read_back(job: EvaluationJob, lineups: Sequence[Lineup], settings: Settings) -> list[Answered]:
    """Return what the store holds of some systems' answers."""
    with Store(settings.store, settings.store_patience_s) as store:
        return list(stored_answers(job.questions, lineups, job.prompts, store))


def voters(job: EvaluationJob, settings: Settings) -> list[Lineup]:
    """Return single agents with as many votes as it takes to write as much as each system's pipeline does.

    A system whose provider counts no tokens, or whose pipeline is its generator alone, has none.
    """
    chains = [lineup for lineup in job.lineups if lineup.kind == "chain" and len(lineup.roles) > 1]
    found = ((lineup, votes_to_meet(read_back(job, [lineup], settings), lineup)) for lineup in chains)
    return [voter(lineup, votes) for lineup, votes in found if votes is not None]


def votes_to_meet(found: Sequence[Answered], lineup: Lineup) -> int | None:
    """Return how many generations it takes to write as many tokens as the pipeline's chains; None where unknown."""
    answers = [answer for each in found for answer in each.answers]
    alone = [answer.generator_completion_tokens for answer in answers]
    whole = [answer.completion_tokens for answer in answers]
    if None in alone or None in whole or not sum(count or 0 for count in alone):
        return None
    share = sum(count or 0 for count in whole) / sum(count or 0 for count in alone)
    return min(ceil(share * lineup.chains), MOST_VOTES)


def voter(lineup: Lineup, votes: int) -> Lineup:
    """Return a system's generator with so many votes."""
    spec = lineup.spec.model_copy(update={"roles": with_samples(lineup.spec.roles, votes)})
    return lineup._replace(kind="votes", spec=spec, roles=(Role.GENERATOR,))


def limit_questions(overrides: Sequence[str], limit: int | None) -> list[str]:
    """Return overrides with a limit on the questions that are evaluated."""
    return [*overrides, *([] if limit is None else [f"evaluate.questions.limit={limit}"])]
