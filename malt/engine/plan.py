"""Plan: what a run would ask and cost, counted against the store; what further completions will take. Asks nobody."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from math import ceil, sqrt
from statistics import stdev
from typing import Any, Literal, NamedTuple

from malt.concurrency import gather_all
from malt.config.base import Recorded
from malt.config.roles import PLAYERS, ModelSpec, Role
from malt.config.spec import RunSpec
from malt.engine.job import Job, models_asked
from malt.engine.run import SHOWN
from malt.errors import StoreError
from malt.llm.batch.api import is_asked_in_batches
from malt.llm.budget import Usage
from malt.llm.client.completers import StoreCompleter, measure_usage, read_sample
from malt.llm.provider import call
from malt.llm.request import DEFAULT_MAX_TOKENS, Completion, CompletionRequest, RequestFailed
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.growth import nodes_per_question, requests_per_question
from malt.trees.pipeline import assess
from malt.trees.replay import windows
from malt.trees.tree import Tree


class Range(NamedTuple):
    """A quantity as it may come out: 95 % of runs should lie between the ends."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(*(part * factor for part in self))

    def plus(self, other: "Range") -> "Range":
        """Add up end by end, as if all came out low, or high, together."""
        return Range(*(mine + its for mine, its in zip(self, other, strict=True)))

    def shared(self, share: "Range") -> "Range":
        return Range(*(mine * its for mine, its in zip(self, share, strict=True)))

    def at_most(self, limit: float) -> "Range":
        return Range(*(min(part, limit) for part in self))


_NOTHING = Range(0, 0, 0)

_CHARACTERS_PER_TOKEN = Range(5, 4, 3)
"""What is assumed of a prompt, as English prose and code are."""
_SHARE_OF_MAX_TOKENS = Range(1 / 8, 1 / 2, 1)
"""What is assumed of a completion."""


class Total(NamedTuple):
    """One question's total of something, and how many completions took it."""

    amount: float
    completions: int


def each_takes(totals: Sequence[Total], questions: int) -> Range:
    """Return what a completion takes on average over `questions` further ones, judging by those that were seen.

    A prediction interval for the mean: questions differ, and completions of one question are alike, so it goes by the
    questions' means. A single question says little: half to twice of what it took.
    """
    from scipy.special import stdtrit

    mean = sum(total.amount for total in totals) / sum(total.completions for total in totals)
    if len(totals) == 1:
        return Range(mean / 2, mean, mean * 2)
    spread = stdev(total.amount / total.completions for total in totals)
    half = float(stdtrit(len(totals) - 1, 0.975)) * spread * sqrt(1 / len(totals) + 1 / max(1, questions))
    return Range(max(0.0, mean - half), mean, mean + half)


def _tokens_of(characters: float) -> Range:
    """Return the tokens that a prompt of so many characters is assumed to have."""
    return Range(*(characters / each for each in _CHARACTERS_PER_TOKEN))


class Figures(Recorded):
    """One end of the range that a quote may come out in."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """As providers reported it of stored completions, else by LiteLLM's prices; None where neither is known."""


class Quote(Figures):
    """What would still be asked: as expected, as low, and as high as it may come out."""

    requests: int
    """Still to be sent, where siblings are one request."""
    completions: int
    """Still to be bought."""
    stored_completions: int
    """Already in the store."""
    low: Figures
    high: Figures


class RolePlan(Quote):
    """What one role would still be asked."""

    model: str
    mode: Literal["direct", "batch"]
    """How it is asked: in batches where the run's mode says so and its provider takes them."""
    basis: str
    """Where the figures come from."""


class Plan(Quote):
    """The quote of a run. The evaluator's figures are what it takes if no other grader decides first."""

    dataset: str
    questions: int
    excluded: dict[str, int]
    """Questions that will give no training rows, by the gate; their trees are grown all the same."""
    refresh: tuple[Role, ...]
    """Roles that are asked anew; what the store has of them is not counted as stored."""
    roles: dict[Role, RolePlan]


@dataclass
class Count:
    """What the store has of one role, and what the prompts asked so far weigh."""

    whole_requests: int = 0
    """Requests of which every sample is stored."""
    prompts: int = 0
    prompt_characters: int = 0
    completions: int = 0
    seen: dict[str, Usage] = field(default_factory=dict)
    """What they took where the provider counted, by question."""
    others: Usage = field(default_factory=Usage)
    """What the same role and model took with other prompts or settings, where nothing is seen of these."""
    missing: int = 0
    """Samples that were asked for on the way and are not stored."""
    grown: int = 0
    """Nodes of the trees that are whole."""
    grown_in_full: int = 0
    """Nodes that these would have where all were asked for."""


class _CountingRecall(StoreCompleter):
    """Recalls what the store has, and counts it by role."""

    def __init__(self, known: dict[str, StoredSample], counts: dict[Role, Count]) -> None:
        super().__init__(known)
        self.counts = counts
        self._counted: set[str] = set()

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        count = self.counts[request.role]
        count.prompts += 1
        count.prompt_characters += sum(len(message.content) for message in request.messages)
        try:
            completions = await super().__call__(request)
        except RequestFailed as failure:
            self._add(count, request, failure.completed.values())
            count.missing += request.count - len(failure.completed)
            raise
        count.whole_requests += 1
        self._add(count, request, completions)
        return completions

    def _add(self, count: Count, request: CompletionRequest, completions: Iterable[Completion]) -> None:
        new = [completion for completion in completions if completion.key not in self._counted]
        self._counted.update(completion.key for completion in new)
        for completion in new:
            count.completions += 1
            if completion.completion_tokens is not None:
                count.seen.setdefault(request.question_id, Usage()).add(measure_usage(completion))


def plan(job: Job, store: Store, refresh: Collection[Role] = ()) -> Plan:
    """Quote a run: what it needs in full, less what the store has; roles to `refresh`, and at most all below, anew."""
    spec, counts = job.spec, _count_stored(job, store, refresh)
    if refresh:
        for role, whole in _count_stored(job, store).items():
            counts[role].seen = whole.seen
    roles = {role: _plan_role(role, model, job, counts) for role, model in models_asked(spec).items()}
    excluded = job.screening.counts.excluded
    told = {"dataset": spec.name, "questions": len(job.questions), "excluded": excluded, "refresh": tuple(refresh)}
    return Plan(**told, roles=roles, **add_quotes(roles.values()))


def add_quotes(parts: Collection[Quote]) -> dict[str, Any]:
    """Add up quotes end by end, as the fields of their sum."""
    counts = ("requests", "completions", "stored_completions")
    return {
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
        **_together(parts).model_dump(),
        "low": _together([part.low for part in parts]),
        "high": _together([part.high for part in parts]),
    }


def _together(parts: Collection[Figures]) -> Figures:
    """Add up figures; one unknown cost makes all of it unknown."""
    costs = [part.cost_usd for part in parts]
    return Figures(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        completion_tokens=sum(part.completion_tokens for part in parts),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def _count_stored(job: Job, store: Store, refresh: Collection[Role] = ()) -> dict[Role, Count]:
    """Count what trees have in the store, but for what roles to `refresh` said."""
    counts = {role: Count() for role in Role}

    async def visit(window: Sequence[Question]) -> None:
        rows = store.rows(question.question_id for question in window)
        counting = _CountingRecall({key: row for key, row in rows.items() if row.role not in refresh}, counts)
        for valued in await gather_all(assess(question, job.inputs(counting)) for question in window):
            if valued.tree.complete:
                _count_grown(counts, valued.tree, job.spec)
        _count_others(counts, rows.values(), job.spec)

    for window in windows(job.questions):
        asyncio.run(visit(window))
    return counts


def _count_grown(counts: Mapping[Role, Count], tree: Tree, spec: RunSpec) -> None:
    for role, nodes in nodes_per_question(spec).items():
        counts[role].grown += sum(address.role is role for address in tree.nodes)
        counts[role].grown_in_full += nodes


def _count_others(counts: Mapping[Role, Count], rows: Collection[StoredSample], spec: RunSpec) -> None:
    for role, model in models_asked(spec).items():
        if not counts[role].seen:
            others = (row for row in rows if (row.role, row.model) == (role, model.model))
            counts[role].others.add(_add_up(others))


def _add_up(rows: Iterable[StoredSample]) -> Usage:
    """Add up what answers took where the provider counted; one that is damaged is not a plan's concern."""
    total = Usage()
    for row in (row for row in rows if row.response is not None):
        with suppress(StoreError):
            if (completion := read_sample(row, cached=True)).completion_tokens is not None:
                total.add(measure_usage(completion))
    return total


def _plan_role(role: Role, model: ModelSpec, job: Job, counts: Mapping[Role, Count]) -> RolePlan:
    spec, count, questions = job.spec, counts[role], len(job.questions)
    requests, completions = _still_to_ask(role, questions, spec, counts)
    if spec.growth.mode == "adaptive" or not call.takes_siblings(model):
        requests = completions
    expected = expect(role, model, spec, counts, requests, completions)
    if spec.growth.mode == "adaptive":
        expected = adaptively(expected, _share_grown(role, spec, counts))
    low, middle, high = figures_of(expected)
    return RolePlan(
        model=model.model,
        mode="batch" if is_asked_in_batches(model, spec) else "direct",
        requests=requests,
        completions=completions,
        stored_completions=count.completions,
        **middle.model_dump(),
        low=low,
        high=high,
        basis=expected.basis,
    )


def _still_to_ask(role: Role, questions: int, spec: RunSpec, counts: Mapping[Role, Count]) -> tuple[int, int]:
    """Return the requests and completions that are left for a role.

    The judge takes one of each for a node: for those there are, where the graders before it left it one; for those
    that are still to grow, at most. So it is for all roles where growth is adaptive.
    """
    count, nodes = counts[role], nodes_per_question(spec)
    if role is not Role.EVALUATOR:
        requests = questions * requests_per_question(spec)[role] - count.whole_requests
        return requests, questions * nodes[role] - count.completions - count.grown_in_full + count.grown
    judged = PLAYERS if spec.evaluator.scope == "all" else PLAYERS[-1:]
    to_grow = sum(_still_to_ask(player, questions, spec, counts)[1] for player in judged)
    return to_grow + count.missing, to_grow + count.missing


class _Expected(NamedTuple):
    """What a role's further requests should take in all, and how that is known."""

    prompt: Range
    completion: Range
    cost: Range | None
    basis: str


def _share_grown(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> Range:
    """Return the share of full trees that adaptive growth asks for: what it always begins with, as yet, all."""
    player = PLAYERS[-1] if role is Role.EVALUATOR else role
    count, nodes = counts[player], nodes_per_question(spec)
    as_yet = count.grown / count.grown_in_full if count.grown_in_full else 1.0
    return Range(nodes[PLAYERS[0]] / nodes[player], as_yet, 1.0)


def adaptively(expected: _Expected, share: Range) -> _Expected:
    return _Expected(
        expected.prompt.shared(share),
        expected.completion.shared(share),
        None if expected.cost is None else expected.cost.shared(share),
        f"{expected.basis}; adaptive growth asks for {share.low:.0%} to all of it, as yet {share.expected:.0%}",
    )


def expect(
    role: Role, model: ModelSpec, spec: RunSpec, counts: Mapping[Role, Count], requests: int, completions: int
) -> _Expected:
    """Reckon with what the store has of this config, else with assumptions."""
    seen = list(counts[role].seen.values())
    if not completions:
        return _Expected(_NOTHING, _NOTHING, _NOTHING, "all of it is stored")
    if not seen:
        prompt, completion = _prompt_assumed(role, spec, counts), _completion_assumed(model, counts[role])
        basis = _assumption(model, counts[role].others)
        return priced(model, spec, prompt.times(requests), completion.at_most(longest(model)).times(completions), basis)
    questions = ceil(completions * len(seen) / sum(one.completions for one in seen))
    prompt = each_takes([Total(one.prompt_tokens, one.completions) for one in seen], questions)
    completion = each_takes([Total(one.completion_tokens, one.completions) for one in seen], questions)
    expected = priced(
        model, spec, prompt.times(completions), completion.at_most(longest(model)).times(completions), history(seen)
    )
    costs = [Total(one.cost_usd, one.completions) for one in seen if one.cost_usd is not None]
    are_mixed = is_asked_in_batches(model, spec) and expected.cost is not None  # some may be direct ones'
    if are_mixed or len(costs) < len(seen):
        return expected
    return expected._replace(cost=each_takes(costs, questions).times(completions))


def priced(model: ModelSpec, spec: RunSpec, prompt: Range, completion: Range, basis: str) -> _Expected:
    """Add the cost by LiteLLM's prices, where it has any."""
    prices = call.find_price(model, batched=is_asked_in_batches(model, spec))
    cost = None if prices is None else prompt.times(prices.prompt).plus(completion.times(prices.completion))
    return _Expected(prompt, completion, cost, basis)


def figures_of(expected: _Expected) -> list[Figures]:
    costs = (None, None, None) if expected.cost is None else expected.cost
    rounded = [(int(low), round(middle), ceil(high)) for low, middle, high in (expected.prompt, expected.completion)]
    parts = zip(*rounded, costs, strict=True)
    return [Figures(prompt_tokens=given, completion_tokens=came, cost_usd=cost) for given, came, cost in parts]


def history(seen: Sequence[Usage]) -> str:
    completions = sum(one.completions for one in seen)
    if len(seen) == 1:
        return f"{completions} stored completions to one question: from half to twice of what they took"
    return f"{completions} stored completions to {len(seen)} questions; the range holds 95 % of what may come"


def _assumption(model: ModelSpec, others: Usage) -> str:
    length = f"half of max_tokens = {longest(model)} a completion, an eighth at least, all of it at most"
    if others.completions:
        mean, stored = others.completion_tokens / others.completions, f"{others.completions} stored ones"
        length = f"{mean:.0f} tokens a completion, the mean of {stored} to other prompts or with other settings, "
        length += "from half to twice of it"
    return (
        f"assumed: {length}; 3 to 5 characters a token. `--pilot 10` asks ten questions and quotes from what they took"
    )


def longest(model: ModelSpec) -> int:
    return model.max_tokens or DEFAULT_MAX_TOKENS


def _completion_assumed(model: ModelSpec, count: Count) -> Range:
    """Return the tokens to expect of a completion, by those that were seen, else by others, else by max_tokens."""
    known = [*count.seen.values()] or [count.others]
    totals = [Total(one.completion_tokens, one.completions) for one in known if one.completions]
    return each_takes(totals, len(totals)) if totals else _SHARE_OF_MAX_TOKENS.times(longest(model))


def _prompt_assumed(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> Range:
    """Return the tokens to expect of one prompt: those rendered, else the generator's and what is shown too."""
    count = counts[role]
    if count.prompts:
        return _tokens_of(count.prompt_characters / count.prompts)
    first = counts[PLAYERS[0]]
    asked = _tokens_of(first.prompt_characters / max(first.prompts, 1))
    shown = (_completion_assumed(spec.roles[above], counts[above]) for above in SHOWN[role])
    return reduce(Range.plus, shown, asked)
