"""Run: one execution of a job, in one or more processes; its session, and the worst-case cost of a tree under a cap."""

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
    """Return a unique name; names sort by time."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}-{uuid4().hex[:8]}"


@dataclass(frozen=True)
class Run:
    """One execution of a job: the name recorded with its answers, and the roles it may ask."""

    name: str = field(default_factory=new_run_name)
    roles: Collection[Role] = EVERY_ROLE
    tally: Tally = field(default_factory=Tally)
    """Usage of this run so far, as far as this process knows; the progress line shows it."""


class Filled(NamedTuple):
    """Result of filling the store: the samples still missing, and each role's usage."""

    shortfall: Shortfall
    tally: Tally


class Finished(Recorded):
    """Questions, failures and usage of a finished run. Requests and tokens count this run alone."""

    questions: int
    failures: tuple[FailedBranch, ...]
    requests: int
    """Requests that this run sent to endpoints, retries included."""
    completions: int
    cached_completions: int
    """Completions taken from the store."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """Cost of this run; None where a completion's cost is unknown."""
    wall_s: float
    stopped: str | None
    """Reason why the run stopped early."""


def asker_for(job: Job, run: Run) -> SessionCompleter:
    """Return the completer of a job's questions in this process; it refuses requests once the session has stopped."""
    return make_completer(
        session_of(job, run), [question.question_id for question in job.questions], run.roles, run.name
    )


def session_of(job: Job, run: Run) -> Session:
    """Return this process's session for a run; its usage is added to the run's tally."""
    session = open_session(job.settings, job.spec.limits, run.name)
    session.tally.above = run.tally
    return session


def merge(parts: Iterable[Filled]) -> Filled:
    """Merge the results of a job's parts; the first stop reason is kept."""
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
"""Roles whose texts each role's prompt contains."""


def admit_trees(ask: SessionCompleter, spec: RunSpec, prompts: PromptSet) -> Admit:
    """Return the admission check of a tree: it waits for room under the caps, if there are any."""
    if not spec.limits.capped:
        return lambda _question: nullcontext()
    return lambda question: ask.session.tree(most_for_tree(question, spec, prompts))


def most_for_tree(question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    """Return the worst-case usage of a whole tree: every text has its maximum length, and every leaf is judged."""
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
