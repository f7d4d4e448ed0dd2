"""Evaluation: ask for the answers of every system that the store lacks, then publish those that it holds."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict

from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.run import Finished, admit_trees, new_run_name
from malt.errors import NothingToPublish, RunStopped
from malt.evaluation.answers import Answered, ask_answers, stored_answers
from malt.evaluation.job import EvaluationJob, check_systems, read_evaluation
from malt.evaluation.publish import publish
from malt.evaluation.statistics import find_losers, order_questions, plan_rounds
from malt.evaluation.systems import Lineup, find_baseline, with_samples
from malt.evaluation.table import make_frame, make_sheets, make_table
from malt.evaluation.version import EvaluationVersion
from malt.llm.budget import Tally
from malt.llm.client.completers import make_completer
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.client.session import open_session
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.pipeline import NOTHING_MISSING, Admit, Shortfall
from malt.trees.tree import FailedBranch

_MOST_VOTES = 64
"""Largest number of votes of a single agent in the equal-tokens comparison."""


def evaluate(spec: RunSpec | str | Path, overrides: Sequence[str] = ()) -> EvaluationVersion:
    """Compare a config's systems on held-out questions, and return the evaluation version.

    Takes a `RunSpec` with an `evaluate` part, or the path of a config and overrides such as `evaluate.chains=5`. Asks
    for what the store lacks. Raises what a run raises, and `NothingToPublish` where no question was answered.
    """
    declared = spec if isinstance(spec, RunSpec) else load_spec(Path(spec), overrides)
    done = asyncio.run(evaluate_alone(read_evaluation(declared), Settings()))
    if done.stopped is not None:
        raise RunStopped(done.stopped)
    if done.version is None:
        raise NothingToPublish(f"no evaluation of {declared.name!r} was made: no question was answered")
    return done.version


class Evaluated(Finished):
    """Result of an evaluation, and its usage."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    evaluation: str
    version: EvaluationVersion | None
    """None where nothing was published."""

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed branches or without a version, 3 stopped at a limit."""
        if self.stopped is not None:
            return 3
        return 1 if self.failures or self.version is None else 0

    @property
    def sentence(self) -> str:
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        if self.version is None:
            return "no evaluation: no question was answered"
        missing = f", {len(self.failures)} failed branches; run again to ask for just what is missing"
        return f"{self.version.reference}: {self.questions} questions{missing if self.failures else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON: the version's figures, and the usage of this run."""
        version = self.version
        empty: dict[str, Any] = {"systems": {}, "differences": {}}
        figures = empty if version is None else version.summary.model_dump(mode="json")
        place = {
            "version": None if version is None else version.number,
            "created": version is not None and version.created,
            "path": None if version is None else str(version.path),
            "content_sha256": None if version is None else version.manifest.content_sha256,
        }
        return {**self.model_dump(mode="json", exclude={"version"}), **figures, **place}


async def evaluate_alone(job: EvaluationJob, settings: Settings) -> Evaluated:
    """Hold the evaluation's lock; ask for what the store lacks, then publish what it holds of all systems."""
    check_systems(job)
    run = new_run_name()
    async with hold_run_lock(name_lock(job), settings, f"run {run}"):
        filled = await fill(job, settings, run)
        stopped = filled.shortfall.stopped is not None
        return conclude(filled, None if stopped else await asyncio.to_thread(build, filled.job, settings))


def name_lock(job: EvaluationJob) -> str:
    """Return the name of the lock that prevents two evaluations from paying for the same answers."""
    return f"evaluation-{job.spec.name}"


class EvaluationFill(NamedTuple):
    """Result of asking: the job, with the votes of the equal-tokens comparison added, and what is missing."""

    job: EvaluationJob
    shortfall: Shortfall
    tally: Tally
    started: float
    """Monotonic seconds."""


class EvaluationBuilt(NamedTuple):
    """Result of publishing: a version, None where the store holds no answer, and what is missing."""

    version: EvaluationVersion | None
    failures: tuple[FailedBranch, ...]


def conclude(filled: EvaluationFill, built: EvaluationBuilt | None) -> Evaluated:
    """Assemble an evaluation's result; `built` is None where nothing was to be published."""
    version, failures = built or EvaluationBuilt(None, filled.shortfall.failures)
    return Evaluated(
        **asdict(filled.tally.total),
        evaluation=filled.job.spec.name,
        version=version,
        questions=len(filled.job.questions),
        failures=failures,
        wall_s=time.monotonic() - filled.started,
        stopped=filled.shortfall.stopped,
    )


async def fill(job: EvaluationJob, settings: Settings, run: str) -> EvaluationFill:
    """Ask for all chains, round by round where systems race, then for the votes of the equal-tokens comparison."""
    started = time.monotonic()
    session = open_session(settings, job.spec.limits, run=run)
    ask = make_completer(session, [question.question_id for question in job.questions], run=run)

    def admit(lineup: Lineup) -> Admit:
        return admit_trees(ask, lineup.spec, job.prompts)

    async def ask_for(pairs: Sequence[tuple[Question, Lineup]]) -> Shortfall:
        return await session.call(ask_answers(pairs, job.prompts, ask, admit))

    shortfall = NOTHING_MISSING
    for questions in _list_rounds(job):
        shortfall = await ask_for(job.pair(job.lineups, questions))
        if shortfall.stopped is not None:
            break
        if len(questions) < len(job.questions):
            job = await asyncio.to_thread(_drop_losers, job, questions, settings)
    if job.evaluate.equal_tokens and shortfall.stopped is None:
        votes = await asyncio.to_thread(_find_voters, job, settings)
        job = job._replace(lineups=[*job.lineups, *votes])
        shortfall = await ask_for(job.pair(votes, job.questions))
    return EvaluationFill(job, shortfall, Tally(ask.tally.roles), started)


def _list_rounds(job: EvaluationJob) -> list[list[Question]]:
    """Return the questions asked by the end of each round: all in a single round, unless systems race."""
    if not job.evaluate.race:
        return [job.questions]
    ordered = order_questions(job.questions)
    return [ordered[:count] for count in plan_rounds(len(ordered))]


def _drop_losers(job: EvaluationJob, questions: Sequence[Question], settings: Settings) -> EvaluationJob:
    """Return the job without further questions for systems that can no longer win; the baseline stays."""
    answers = [each for found in _read_back(job, job.lineups, settings, questions) for each in found.answers]
    sheets = make_sheets(job.spec, make_frame(make_table(answers)), "chain")
    racing = {name: sheet.scores(job.evaluate.measure) for name, sheet in sheets.items() if name not in job.asked}
    losers = find_losers(racing, len(plan_rounds(len(job.questions))), len(sheets))
    ids = frozenset(question.question_id for question in questions)
    dropped = {name: ids for name in losers if name != find_baseline(job.spec)}
    return job._replace(asked={**job.asked, **dropped})


def build(job: EvaluationJob, settings: Settings) -> EvaluationBuilt:
    """Publish what the store holds; None where it holds no answer."""
    found = _read_back(job, job.lineups, settings)
    failures = tuple(dict.fromkeys(failure for each in found for failure in each.failures))
    answers = [answer for each in found for answer in each.answers]
    if all(answer.texts[PLAYERS[0]] is None for answer in answers):
        return EvaluationBuilt(None, failures)
    return EvaluationBuilt(publish(job, make_table(answers), failures, settings), failures)


def _read_back(
    job: EvaluationJob, lineups: Sequence[Lineup], settings: Settings, questions: Sequence[Question] | None = None
) -> list[Answered]:
    with Store(settings.store, settings.store_patience_s) as store:
        return list(stored_answers(job.pair(lineups, questions or job.questions), job.prompts, store))


def _find_voters(job: EvaluationJob, settings: Settings) -> list[Lineup]:
    """Return for each pipeline a single agent with as many tokens; none for a lone generator or unknown tokens."""
    chains = [lineup for lineup in job.lineups if lineup.kind == "chain" and len(lineup.roles) > 1]
    found = ((lineup, _count_equal_votes(_read_back(job, [lineup], settings), lineup)) for lineup in chains)
    return [_make_voter(lineup, votes) for lineup, votes in found if votes is not None]


def _count_equal_votes(found: Sequence[Answered], lineup: Lineup) -> int | None:
    """Return the number of generations with as many tokens as the pipeline's chains, 64 at most; None where unknown."""
    answers = [answer for each in found for answer in each.answers]
    alone = [answer.single_took.completion_tokens for answer in answers]
    whole = [answer.took.completion_tokens for answer in answers]
    if None in alone or None in whole or not sum(count or 0 for count in alone):
        return None
    share = sum(count or 0 for count in whole) / sum(count or 0 for count in alone)
    return min(ceil(share * lineup.chains), _MOST_VOTES)


def _make_voter(lineup: Lineup, votes: int) -> Lineup:
    spec = lineup.spec.model_copy(update={"roles": with_samples(lineup.spec.roles, votes)})
    return lineup._replace(kind="votes", spec=spec, roles=PLAYERS[:1])
