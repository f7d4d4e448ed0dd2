"""Plan: what a run would ask and cost, counted against the store. Asks nobody."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from malt.concurrency import all_of
from malt.errors import RequestFailed
from malt.inputs import Inputs, models_asked, windows
from malt.llm import provider
from malt.llm.asker import Recall
from malt.llm.completion import DEFAULT_MAX_TOKENS, Completion, CompletionRequest
from malt.llm.store import Store, StoredSample
from malt.outlay import SHOWN
from malt.questions import Question
from malt.spec import PLAYERS, ModelSpec, Role, RunSpec
from malt.trees.assessment import assess
from malt.trees.growth import nodes_per_question, requests_per_question

CHARACTERS_PER_TOKEN = 4


class RolePlan(BaseModel):
    """What one role would still be asked."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: str
    requests: int
    """Still to be sent, where siblings are one request."""
    completions: int
    """Still to be bought."""
    stored_completions: int
    """Already in the store."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """None where no price is known."""
    basis: str
    """Where the token figures come from."""


class Plan(BaseModel):
    """The quote of a run. The evaluator's figures are what it takes if no other grader decides first."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    dataset: str
    questions: int
    excluded: dict[str, int]
    """Questions that will give no training rows, by the gate; their trees are grown all the same."""
    roles: dict[Role, RolePlan]
    requests: int
    completions: int
    stored_completions: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


@dataclass
class Count:
    """What the store has of one role, and what the prompts asked so far weigh."""

    whole_requests: int = 0
    """Requests of which every sample is stored."""
    prompts: int = 0
    prompt_characters: int = 0
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    missing: int = 0
    """Samples that were asked for on the way and are not stored."""


class Census(Recall):
    """Recalls what the store has, and counts it by role."""

    def __init__(self, known: dict[str, StoredSample], counts: dict[Role, Count]) -> None:
        super().__init__(known)
        self.counts = counts

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        """Return what is stored, and count it."""
        count = self.counts[request.role]
        count.prompts += 1
        count.prompt_characters += sum(len(message.content) for message in request.messages)
        try:
            completions = await super().__call__(request)
        except RequestFailed as failure:
            self._add(count, failure.completed.values())
            count.missing += request.count - len(failure.completed)
            raise
        count.whole_requests += 1
        self._add(count, completions)
        return completions

    def _add(self, count: Count, completions: Iterable[Completion]) -> None:
        for completion in completions:
            count.completions += 1
            count.prompt_tokens += completion.prompt_tokens or 0
            count.completion_tokens += completion.completion_tokens or 0


def plan(inputs: Inputs, spec: RunSpec, store: Store) -> Plan:
    """Quote a run: what it needs in full, less what the store has."""
    counts = take_census(inputs, spec, store)
    roles = {role: plan_role(role, model, inputs, spec, counts) for role, model in models_asked(spec).items()}
    costs = [role.cost_usd for role in roles.values()]
    return Plan(
        dataset=spec.name,
        questions=len(inputs.questions),
        excluded=inputs.screening.counts.excluded,
        roles=roles,
        requests=sum(role.requests for role in roles.values()),
        completions=sum(role.completions for role in roles.values()),
        stored_completions=sum(role.stored_completions for role in roles.values()),
        prompt_tokens=sum(role.prompt_tokens for role in roles.values()),
        completion_tokens=sum(role.completion_tokens for role in roles.values()),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def take_census(inputs: Inputs, spec: RunSpec, store: Store) -> dict[Role, Count]:
    """Grow every tree as far as the store goes, and count."""
    counts = {role: Count() for role in Role}

    async def visit(window: Sequence[Question]) -> None:
        census = Census(store.rows(question.question_id for question in window), counts)
        await all_of(assess(question, spec, inputs.prompts, census) for question in window)

    for window in windows(inputs.questions):
        asyncio.run(visit(window))
    return counts


def plan_role(role: Role, model: ModelSpec, inputs: Inputs, spec: RunSpec, counts: Mapping[Role, Count]) -> RolePlan:
    """Quote one role."""
    count, questions = counts[role], len(inputs.questions)
    requests, completions = still_to_ask(role, questions, spec, counts)
    if completions and not provider.takes_siblings(model):
        requests = completions
    per_completion, basis = completion_tokens(model, count)
    completion_total = completions * per_completion
    prompt_total = requests * prompt_tokens(role, spec, counts)
    return RolePlan(
        model=model.model,
        requests=requests,
        completions=completions,
        stored_completions=count.completions,
        prompt_tokens=prompt_total,
        completion_tokens=completion_total,
        cost_usd=cost(model, prompt_total, completion_total) if completions else 0.0,
        basis=basis,
    )


def still_to_ask(role: Role, questions: int, spec: RunSpec, counts: Mapping[Role, Count]) -> tuple[int, int]:
    """Return the requests and completions that are left for a role.

    The judge takes one of each for a node: for those there are, where the graders before it left it one; for those
    that are still to grow, at most.
    """
    count, nodes = counts[role], nodes_per_question(spec)
    if role is not Role.EVALUATOR:
        requests = questions * requests_per_question(spec)[role] - count.whole_requests
        return requests, questions * nodes[role] - count.completions
    judged = PLAYERS if spec.evaluator.scope == "all" else PLAYERS[-1:]
    to_grow = sum(questions * nodes[player] - counts[player].completions for player in judged)
    return to_grow + count.missing, to_grow + count.missing


def completion_tokens(model: ModelSpec, count: Count) -> tuple[int, str]:
    """Return the tokens to expect of one completion, and how that is known."""
    if count.completions:
        return round(count.completion_tokens / count.completions), "mean of what the store has"
    longest = model.max_tokens or DEFAULT_MAX_TOKENS
    return longest, f"assumed at most: {longest} tokens a completion, {CHARACTERS_PER_TOKEN} characters a token"


def prompt_tokens(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> int:
    """Return the tokens to expect of one prompt: the ones seen, else the generator's and what is shown on top of it."""
    count = counts[role]
    if count.prompts:
        return round(count.prompt_characters / count.prompts / CHARACTERS_PER_TOKEN)
    generator = counts[Role.GENERATOR]
    asked = round(generator.prompt_characters / max(generator.prompts, 1) / CHARACTERS_PER_TOKEN)
    return asked + sum(completion_tokens(spec.roles[above], counts[above])[0] for above in SHOWN[role])


def cost(model: ModelSpec, prompt: int, completion: int) -> float | None:
    """Price some tokens in dollars; None where no price is known."""
    price = provider.price(model)
    return None if price is None else prompt * price[0] + completion * price[1]
