"""Plan: requests, tokens and cost that a run still needs, given the samples in the store. Makes no model call."""

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
from malt.errors import StoreError, named_place
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
    """Expected value of a quantity, with a range in which 95 % of runs should lie."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(*(part * factor for part in self))

    def plus(self, other: "Range") -> "Range":
        """Add each end, as if both quantities were low, or high, together."""
        return Range(*(mine + its for mine, its in zip(self, other, strict=True)))

    def shared(self, share: "Range") -> "Range":
        return Range(*(mine * its for mine, its in zip(self, share, strict=True)))

    def at_most(self, limit: float) -> "Range":
        return Range(*(min(part, limit) for part in self))


_NOTHING = Range(0, 0, 0)

_CHARACTERS_PER_TOKEN = Range(5, 4, 3)
"""Assumed characters per prompt token, typical of English prose and code."""
_SHARE_OF_MAX_TOKENS = Range(1 / 8, 1 / 2, 1)
"""Assumed length of a completion, as a share of max_tokens."""


class Total(NamedTuple):
    """Total of a quantity (tokens or dollars) over one question's completions, and their number."""

    amount: float
    completions: int


def each_takes(totals: Sequence[Total], questions: int) -> Range:
    """Return the mean per completion to expect over `questions` further questions, given the totals of those seen.

    The range is a prediction interval for the mean. It is based on the questions' means, since questions differ and
    completions of one question are alike. A single question says little: the range is half to twice its mean.
    """
    from scipy.special import stdtrit

    mean = sum(total.amount for total in totals) / sum(total.completions for total in totals)
    if len(totals) == 1:
        return Range(mean / 2, mean, mean * 2)
    spread = stdev(total.amount / total.completions for total in totals)
    half = float(stdtrit(len(totals) - 1, 0.975)) * spread * sqrt(1 / len(totals) + 1 / max(1, questions))
    return Range(max(0.0, mean - half), mean, mean + half)


def _tokens_of(characters: float) -> Range:
    """Return the assumed number of tokens of a prompt with this number of characters."""
    return Range(*(characters / each for each in _CHARACTERS_PER_TOKEN))


class Figures(Recorded):
    """Tokens and cost of a quote: as expected, or at one end of its range."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """Cost, from what providers reported for stored completions, else from LiteLLM's prices; None without either."""


class Quote(Figures):
    """Requests, tokens and cost still needed: expected, and both ends of the range."""

    requests: int
    """Requests still to be sent; siblings share a request where the provider allows it."""
    completions: int
    """Completions still to be bought."""
    stored_completions: int
    """Completions in the store already."""
    low: Figures
    high: Figures


class RolePlan(Quote):
    """Quote of one role."""

    model: str
    mode: Literal["direct", "batch"]
    """Mode of its requests: `batch` if the run's mode is batch and its provider supports batches."""
    basis: str
    """Source of the figures: stored completions or assumptions."""


class Plan(Quote):
    """Quote of a run. The evaluator's figures assume that no other grader decides first."""

    dataset: str
    questions: int
    excluded: dict[str, int]
    """Number of questions that will give no training rows, by gate; their trees are still grown."""
    refresh: tuple[Role, ...]
    """Roles that are asked again; their samples in the store are not counted as stored."""
    roles: dict[Role, RolePlan]


@dataclass
class Count:
    """Samples of one role in the store, and the size of the prompts rendered so far."""

    whole_requests: int = 0
    """Requests whose samples are all stored."""
    prompts: int = 0
    prompt_characters: int = 0
    completions: int = 0
    seen: dict[str, Usage] = field(default_factory=dict)
    """Usage of the stored completions whose tokens the provider counted, by question."""
    others: Usage = field(default_factory=Usage)
    """Usage of the same role and model with other prompts or settings, if `seen` is empty."""
    missing: int = 0
    """Samples that the replay asked for and the store lacks."""
    grown: int = 0
    """Nodes of the complete trees."""
    grown_in_full: int = 0
    """Nodes that these trees would have if they were grown in full."""


class _CountingCompleter(StoreCompleter):
    """Completer that answers from the store alone, and counts the samples by role."""

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
    """Quote a run: all samples but the stored ones; roles to `refresh` and the roles after them count as missing."""
    spec, counts = job.spec, _count_stored(job, store, refresh)
    if refresh:
        for role, stored in _count_stored(job, store).items():
            counts[role].seen = stored.seen
    roles = {role: _plan_role(role, model, job, counts) for role, model in models_asked(spec).items()}
    excluded = job.screening.counts.excluded
    facts = {"dataset": spec.name, "questions": len(job.questions), "excluded": excluded, "refresh": tuple(refresh)}
    return Plan(**facts, roles=roles, **add_quotes(roles.values()))


def add_quotes(parts: Collection[Quote]) -> dict[str, Any]:
    """Add up quotes, and the ends of their ranges; return the fields of the sum."""
    counts = ("requests", "completions", "stored_completions")
    return {
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
        **_add_figures(parts).model_dump(),
        "low": _add_figures([part.low for part in parts]),
        "high": _add_figures([part.high for part in parts]),
    }


def _add_figures(parts: Collection[Figures]) -> Figures:
    """Add up figures; one unknown cost makes the sum unknown."""
    costs = [part.cost_usd for part in parts]
    return Figures(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        completion_tokens=sum(part.completion_tokens for part in parts),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def _count_stored(job: Job, store: Store, refresh: Collection[Role] = ()) -> dict[Role, Count]:
    """Count the stored samples of the job's trees, without those of the roles to `refresh`."""
    counts = {role: Count() for role in Role}

    async def visit(window: Sequence[Question]) -> None:
        rows = store.rows(question.question_id for question in window)
        counting = _CountingCompleter({key: row for key, row in rows.items() if row.role not in refresh}, counts)
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
    """Add up the usage of answers whose tokens the provider counted; damaged rows are skipped."""
    total = Usage()
    for row in (row for row in rows if row.response is not None):
        with suppress(StoreError):
            if (completion := read_sample(row, cached=True)).completion_tokens is not None:
                total.add(measure_usage(completion))
    return total


def _plan_role(role: Role, model: ModelSpec, job: Job, counts: Mapping[Role, Count]) -> RolePlan:
    spec, count, questions = job.spec, counts[role], len(job.questions)
    requests, completions = _still_to_ask(role, questions, spec, counts)
    with named_place(spec.key_of(role)):
        has_siblings = call.takes_siblings(model)
    if spec.growth.mode == "adaptive" or not has_siblings:
        requests = completions
    expected = expect(role, model, spec, counts, requests, completions)
    if spec.growth.mode == "adaptive":
        expected = _scale_to_share(expected, _grown_share(role, spec, counts))
    low, expectation, high = figures_of(expected)
    return RolePlan(
        model=model.model,
        mode="batch" if is_asked_in_batches(model, spec) else "direct",
        requests=requests,
        completions=completions,
        stored_completions=count.completions,
        **expectation.model_dump(),
        low=low,
        high=high,
        basis=expected.basis,
    )


def _still_to_ask(role: Role, questions: int, spec: RunSpec, counts: Mapping[Role, Count]) -> tuple[int, int]:
    """Return the numbers of requests and completions that a role still needs.

    The judge needs one of each for a node: exactly, for existing nodes that the graders before it left open; at most,
    for nodes still to grow. With adaptive growth the numbers are upper limits for all roles.
    """
    count, nodes = counts[role], nodes_per_question(spec)
    if role is not Role.EVALUATOR:
        requests = questions * requests_per_question(spec)[role] - count.whole_requests
        return requests, questions * nodes[role] - count.completions - count.grown_in_full + count.grown
    judged = PLAYERS if spec.evaluator.scope == "all" else PLAYERS[-1:]
    to_grow = sum(_still_to_ask(player, questions, spec, counts)[1] for player in judged)
    return to_grow + count.missing, to_grow + count.missing


class _Expected(NamedTuple):
    """Expected total tokens and cost of a role's further requests, and the basis of the estimate."""

    prompt: Range
    completion: Range
    cost: Range | None
    basis: str


def _grown_share(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> Range:
    """Return the share of full trees that adaptive growth asks for: its minimum, its share so far, and all."""
    player = PLAYERS[-1] if role is Role.EVALUATOR else role
    count, nodes = counts[player], nodes_per_question(spec)
    so_far = count.grown / count.grown_in_full if count.grown_in_full else 1.0
    return Range(nodes[PLAYERS[0]] / nodes[player], so_far, 1.0)


def _scale_to_share(expected: _Expected, share: Range) -> _Expected:
    return _Expected(
        expected.prompt.shared(share),
        expected.completion.shared(share),
        None if expected.cost is None else expected.cost.shared(share),
        f"{expected.basis}; adaptive growth asks for {share.low:.0%} to all of it, so far {share.expected:.0%}",
    )


def expect(
    role: Role, model: ModelSpec, spec: RunSpec, counts: Mapping[Role, Count], requests: int, completions: int
) -> _Expected:
    """Estimate from the stored completions of this config, else from assumptions."""
    seen = list(counts[role].seen.values())
    if not completions:
        return _Expected(_NOTHING, _NOTHING, _NOTHING, "all of it is stored")
    if not seen:
        prompt, completion = _assume_prompt_tokens(role, spec, counts), _assume_completion_tokens(model, counts[role])
        basis = _describe_assumption(model, counts[role].others)
        return priced(model, spec, prompt.times(requests), completion.at_most(longest(model)).times(completions), basis)
    questions = ceil(completions * len(seen) / sum(one.completions for one in seen))
    prompt = each_takes([Total(one.prompt_tokens, one.completions) for one in seen], questions)
    completion = each_takes([Total(one.completion_tokens, one.completions) for one in seen], questions)
    expected = priced(
        model, spec, prompt.times(completions), completion.at_most(longest(model)).times(completions), history(seen)
    )
    costs = [Total(one.cost_usd, one.completions) for one in seen if one.cost_usd is not None]
    are_mixed = is_asked_in_batches(model, spec) and expected.cost is not None  # stored costs may be of direct requests
    if are_mixed or len(costs) < len(seen):
        return expected
    return expected._replace(cost=each_takes(costs, questions).times(completions))


def priced(model: ModelSpec, spec: RunSpec, prompt: Range, completion: Range, basis: str) -> _Expected:
    """Add the cost by LiteLLM's prices; None if it has no price for the model."""
    prices = call.find_price(model, batched=is_asked_in_batches(model, spec))
    cost = None if prices is None else prompt.times(prices.prompt).plus(completion.times(prices.completion))
    return _Expected(prompt, completion, cost, basis)


def figures_of(expected: _Expected) -> list[Figures]:
    costs = (None, None, None) if expected.cost is None else expected.cost
    rounded = [(int(low), round(middle), ceil(high)) for low, middle, high in (expected.prompt, expected.completion)]
    parts = zip(*rounded, costs, strict=True)
    return [Figures(prompt_tokens=prompt, completion_tokens=written, cost_usd=cost) for prompt, written, cost in parts]


def history(seen: Sequence[Usage]) -> str:
    completions = sum(one.completions for one in seen)
    if len(seen) == 1:
        return f"{completions} stored completions to one question: from half to twice their mean"
    return f"{completions} stored completions to {len(seen)} questions; 95 % of runs should lie in the range"


def _describe_assumption(model: ModelSpec, others: Usage) -> str:
    length = f"half of max_tokens = {longest(model)} a completion, an eighth at least, all of it at most"
    if others.completions:
        mean, stored = others.completion_tokens / others.completions, f"{others.completions} stored ones"
        length = f"{mean:.0f} tokens a completion, the mean of {stored} to other prompts or with other settings, "
        length += "from half to twice that"
    return f"assumed: {length}; 3 to 5 characters a token. `--pilot 10` asks ten questions and quotes from their usage"


def longest(model: ModelSpec) -> int:
    return model.max_tokens or DEFAULT_MAX_TOKENS


def _assume_completion_tokens(model: ModelSpec, count: Count) -> Range:
    """Return the expected tokens of a completion: from those seen, else from other settings, else from max_tokens."""
    known = [*count.seen.values()] or [count.others]
    totals = [Total(one.completion_tokens, one.completions) for one in known if one.completions]
    return each_takes(totals, len(totals)) if totals else _SHARE_OF_MAX_TOKENS.times(longest(model))


def _assume_prompt_tokens(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> Range:
    """Return the expected tokens of one prompt: from rendered ones, else the generator's plus the texts it contains."""
    count = counts[role]
    if count.prompts:
        return _tokens_of(count.prompt_characters / count.prompts)
    first = counts[PLAYERS[0]]
    question = _tokens_of(first.prompt_characters / max(first.prompts, 1))
    shown = (_assume_completion_tokens(spec.roles[above], counts[above]) for above in SHOWN[role])
    return reduce(Range.plus, shown, question)
