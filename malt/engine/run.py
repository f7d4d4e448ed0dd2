"""Run: one execution of a job in this process or another: its name, its session, and what came of it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from malt.config.roles import Role
from malt.engine.job import Job
from malt.llm.client.completers import EVERY_ROLE, SessionCompleter, make_completer
from malt.llm.client.session import Session, open_session
from malt.llm.usage import Tally
from malt.trees.pipeline import Shortfall


def new_run_name() -> str:
    """Return a name that no other run has; names sort by time."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{uuid4().hex[:8]}"


@dataclass(frozen=True)
class Run:
    """One execution of a job: the name its answers are noted with, and the roles it may ask."""

    name: str = field(default_factory=new_run_name)
    roles: Collection[Role] = EVERY_ROLE
    tally: Tally = field(default_factory=Tally)
    """What was asked and found so far, as far as this process knows: for whoever shows progress."""


class Filled(NamedTuple):
    """What came of filling the store: what is missing still, and what each role used."""

    shortfall: Shortfall
    tally: Tally


def asker_for(job: Job, run: Run) -> SessionCompleter:
    """Return what a job's questions ask with in this process; once its session stopped, a run asks no more."""
    return make_completer(
        session_of(job, run), [question.question_id for question in job.questions], run.roles, run.name
    )


def session_of(job: Job, run: Run) -> Session:
    """Return this process's session of a run, which counts into the run's tally."""
    session = open_session(job.settings, job.spec.limits, run.name)
    session.tally.above = run.tally
    return session


def merge(parts: Iterable[Filled]) -> Filled:
    """Put parts of a job together; the first stop counts."""
    tally, shortfalls = Tally(), []
    for part in parts:
        tally.merge(part.tally)
        shortfalls.append(part.shortfall)
    return Filled(
        Shortfall(
            tuple(branch for each in shortfalls for branch in each.failures),
            next((each.stopped for each in shortfalls if each.stopped), None),
            next((each.waits for each in shortfalls if each.waits), None),
        ),
        tally,
    )
