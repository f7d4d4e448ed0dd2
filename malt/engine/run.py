"""Run: one execution of a job in this process or another, its session, and what its trees may cost under a cap."""

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from malt.config.base import Recorded
from malt.config.roles import PLAYERS, ModelSpec, Role, slots_of
from malt.config.spec import RunSpec
from malt.engine.job import Job, models_asked
from malt.llm.batch.api import is_asked_in_batches
from malt.llm.budget import Amount, Tally, estimate_worst_case
from malt.llm.client.completers import EVERY_ROLE, SessionCompleter, make_completer
from malt.llm.client.session import Session, open_session
from malt.llm.provider import call
from malt.llm.request import CompletionRequest, Message
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question, requests_per_question
from malt.trees.pipeline import Admit, Shortfall
from malt.trees.tree import FailedBranch


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


class Finished(Recorded):
    """What a run was about, what it lacks, and what it used. Requests and tokens count this run alone."""

    questions: int
    failures: tuple[FailedBranch, ...]
    requests: int
    """Sent to endpoints by this run, retries included."""
    completions: int
    cached_completions: int
    """Taken from the store."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """What this run spent; None where a completion's cost is unknown."""
    wall_s: float
    stopped: str | None
    """Why the run stopped early."""


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


SHOWN = {role: PLAYERS[:depth] for depth, role in enumerate(PLAYERS)} | {Role.EVALUATOR: PLAYERS[-1:]}
"""Whose texts each role is shown."""


def admit_trees(ask: SessionCompleter, spec: RunSpec, prompts: PromptSet) -> Admit:
    """Return what every tree waits for: room under the caps, where there are any."""
    if not spec.limits.capped:
        return lambda _question: nullcontext()
    return lambda question: ask.session.tree(most_for_tree(question, spec, prompts))


def most_for_tree(question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    """Return what a whole tree takes where every text is as long as it may be, and every leaf is judged."""
    parts = [_most_for_role(role, model, question, spec, prompts) for role, model in models_asked(spec).items()]
    return Amount(sum(part.usd for part in parts), sum(part.tokens for part in parts))


def _most_for_role(role: Role, model: ModelSpec, question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    prices = call.find_price(model, batched=is_asked_in_batches(model, spec)) or (0.0, 0.0)
    nodes = nodes_per_question(spec)
    completions = nodes.get(role, nodes[PLAYERS[-1]])
    requests = requests_per_question(spec).get(role, completions) if call.takes_siblings(model) else completions
    shown = sum(spec.roles[above].max_tokens or 0 for above in SHOWN[role])
    request = CompletionRequest(role, model, _unwritten_prompt(role, question, prompts), question.question_id)
    prompt = estimate_worst_case(request, 0, prices)
    longest = model.max_tokens or 0
    return Amount(
        requests * (prompt.usd + shown * prices[0]) + completions * longest * prices[1],
        requests * (prompt.tokens + shown) + completions * longest,
    )


def _unwritten_prompt(role: Role, question: Question, prompts: PromptSet) -> tuple[Message, ...]:
    known = {"question": question.question, "ground_truth": question.ground_truth}
    return prompts.messages(role, **{slot: known.get(slot, "") for slot in slots_of(role)})
