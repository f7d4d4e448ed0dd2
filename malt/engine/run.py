"""Run: one execution of a job, in one or more processes; its session, and the worst-case cost of a tree under a cap."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from malt.config.base import Recorded
from malt.config.roles import PLAYERS, ModelSpec, Role, slots_of
from malt.config.spec import RunSpec
from malt.engine.job import Job, models_asked
from malt.errors import named_place
from malt.grading.judge import REPAIR_TOKENS, JudgeReply
from malt.llm.batch.api import is_asked_in_batches
from malt.llm.budget import Amount, Tally, Usage, most_prompt_tokens
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


def admit_trees(ask: SessionCompleter, spec: RunSpec, prompts: PromptSet) -> Admit:
    """Return the admission check of a tree: it waits for room under the caps, if there are any."""
    if not spec.limits.capped:
        return lambda _question: nullcontext()
    return lambda question: ask.session.tree(most_for_tree(question, spec, prompts))


def most_for_tree(question: Question, spec: RunSpec, prompts: PromptSet) -> Amount:
    """Return the worst-case usage of a whole tree: every text has its maximum length, and every leaf is judged."""
    nodes = nodes_per_question(spec)
    requests = nodes if spec.growth.mode == "adaptive" else requests_per_question(spec)
    judged = sum(nodes[role] for role in judged_roles(spec))
    parts = []
    for role, model in models_asked(spec).items():
        counts = requests if shares_prompts(role, model, spec) else nodes
        billed, completions = counts.get(role, judged), nodes.get(role, judged)
        parts.append(most_for_role(role, model, question, spec, prompts, billed, completions))
    tokens = sum(part.prompt_tokens + part.completion_tokens for part in parts)
    return Amount(sum(part.cost_usd or 0.0 for part in parts), tokens)


def most_for_role(
    role: Role,
    model: ModelSpec,
    question: Question,
    spec: RunSpec,
    prompts: PromptSet,
    billed_prompts: int,
    completions: int,
) -> Usage:
    """Return the most that a role's requests for one question can use: every text has its maximum length.

    A prompt is billed for each request, or for each completion unless the role `shares_prompts`.
    An earlier text counts `max_tokens` in a later prompt, as its own tokenizer would count it. Every judgement is asked
    for twice, as after an unreadable reply. Repeated requests (after a time-out, say) are not counted. A text without
    `max_tokens` counts as empty.
    """
    longest = model.max_tokens or 0
    request = CompletionRequest(
        role,
        model,
        unwritten_prompt(role, question, prompts),
        question.question_id,
        schema=JudgeReply if role is Role.EVALUATOR else None,
    )
    prompt = most_prompt_tokens(request) + _most_shown(role, spec)
    used = Usage(prompt_tokens=billed_prompts * prompt, completion_tokens=completions * longest)
    if role is Role.EVALUATOR:
        used.add(Usage(0, 0, 0, billed_prompts * (prompt + longest + REPAIR_TOKENS), completions * longest))
    used.cost_usd = _most_usd(used, model, spec)
    return used


def shares_prompts(role: Role, model: ModelSpec, spec: RunSpec) -> bool:
    """Whether the completions of one of the role's requests are surely billed for one prompt, by fallbacks too."""
    if role is Role.EVALUATOR:
        return True
    samples = spec.roles[role].samples
    with named_place(spec.key_of(role)):
        if not call.shares_prompt(model, samples):
            return False
    with named_place(spec.key_of(role, "fallbacks")):
        return all(call.shares_prompt(each, samples) for each in model.backups)


def _most_usd(used: Usage, model: ModelSpec, spec: RunSpec) -> float | None:
    """Return the cost at the listed prices, or at those of the dearest fallback; None where one is not listed."""
    batched = is_asked_in_batches(model, spec)
    prices = [call.find_price(model, batched=batched), *map(call.find_price, model.backups)]
    costs = [used.prompt_tokens * each.prompt + used.completion_tokens * each.completion for each in prices if each]
    return max(costs) if len(costs) == len(prices) else None


def shown_roles(role: Role, spec: RunSpec) -> Sequence[Role]:
    """Return the roles whose texts a role's prompts contain: all at once, or for the judge one of them."""
    return judged_roles(spec) if role is Role.EVALUATOR else PLAYERS[: PLAYERS.index(role)]


def judged_roles(spec: RunSpec) -> Sequence[Role]:
    return PLAYERS if spec.evaluator.scope == "all" else PLAYERS[-1:]


def _most_shown(role: Role, spec: RunSpec) -> int:
    """Return the most tokens of earlier roles' texts in one prompt."""
    lengths = [spec.roles[shown].max_tokens or 0 for shown in shown_roles(role, spec)]
    return max(lengths) if role is Role.EVALUATOR else sum(lengths)


def unwritten_prompt(role: Role, question: Question, prompts: PromptSet) -> tuple[Message, ...]:
    """Return a role's prompt with empty texts of the earlier roles."""
    known = {"question": question.question, "ground_truth": question.ground_truth}
    return prompts.messages(role, **{slot: known.get(slot, "") for slot in slots_of(role)})
