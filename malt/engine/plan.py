"""Plan: requests, tokens and cost that a run still needs, given the samples in the store. Makes no model call."""

import asyncio
from collections import Counter
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
from malt.engine.run import judged_roles, most_for_role, shares_prompts, shown_roles, unwritten_prompt
from malt.errors import StoreError, named_place
from malt.llm.batch.api import is_asked_in_batches
from malt.llm.budget import Usage
from malt.llm.client.completers import StoreCompleter, group_runs, measure_usage, read_sample
from malt.llm.provider import call
from malt.llm.request import DEFAULT_MAX_TOKENS, Completion, CompletionRequest, Message, RequestFailed
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

_BYTES_PER_TOKEN = Range(5, 4, 3)
"""Assumed UTF-8 bytes per prompt token, typical of English prose and code."""
_TOKENS_PER_MESSAGE = Range(3, 5, 8)
"""Assumed tokens that the chat template adds to a message: OpenAI's models 3 or 4, ChatML 5."""
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


def _count_tokens(messages: Sequence[Message]) -> Range:
    """Return the assumed number of tokens of a prompt."""
    size = sum(len(message.content.encode()) for message in messages)
    return Range(*(size / each for each in _BYTES_PER_TOKEN)).plus(_TOKENS_PER_MESSAGE.times(len(messages)))


class Figures(Recorded):
    """Tokens and cost of a quote: as expected, or at one end of its range."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """Cost, from what providers reported for stored completions, else from LiteLLM's prices; None without either."""


class Quote(Figures):
    """Requests, tokens and cost still needed: expected, both ends of the likely range, and the most they can be."""

    requests: int
    """Requests still to be sent; siblings share a request where the provider allows it."""
    completions: int
    """Completions still to be bought."""
    stored_completions: int
    """Completions in the store already."""
    low: Figures
    high: Figures
    most: Figures | None
    """Upper bound if no request is repeated; None where a role has no `max_tokens`. The cost is at listed prices, or
    None where one is not listed or the provider charged more."""


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
    """Samples of one role in the store, by question, and the size of the prompts rendered so far."""

    prompts: int = 0
    prompt_tokens: Range = _NOTHING
    """Assumed tokens of these prompts."""
    saved_requests: Counter[str] = field(default_factory=Counter)
    """Requests that need not be sent; negative where the missing samples of one request need several."""
    completions: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Usage] = field(default_factory=dict)
    """Usage of the stored completions whose tokens the provider counted, by question."""
    others: Usage = field(default_factory=Usage)
    """Usage of the same role and model with other prompts or settings, if `seen` is empty."""
    missing: Counter[str] = field(default_factory=Counter)
    """Samples that the replay asked for and the store lacks."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Nodes that adaptive growth left out, for each complete tree."""


class _Missing(NamedTuple):
    """Requests and completions that one question still needs from a role."""

    requests: int
    completions: int


class _CountingCompleter(StoreCompleter):
    """Completer that answers from the store alone, and counts the samples by role."""

    def __init__(self, known: dict[str, StoredSample], counts: dict[Role, Count]) -> None:
        super().__init__(known)
        self.counts = counts
        self._counted: set[str] = set()

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        count = self.counts[request.role]
        count.prompts += 1
        count.prompt_tokens = count.prompt_tokens.plus(_count_tokens(request.messages))
        missing = self.missing(request)
        count.missing[request.question_id] += len(missing)
        count.saved_requests[request.question_id] += 1 - len(group_runs(missing))
        try:
            completions = await super().__call__(request)
        except RequestFailed as failure:
            self._add(count, request, failure.completed.values())
            raise
        self._add(count, request, completions)
        return completions

    def _add(self, count: Count, request: CompletionRequest, completions: Iterable[Completion]) -> None:
        new = [completion for completion in completions if completion.key not in self._counted]
        self._counted.update(completion.key for completion in new)
        for completion in new:
            count.completions[request.question_id] += 1
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
    """Add up quotes, the ends of their ranges and their bounds; return the fields of the sum."""
    bounds = [part.most for part in parts]
    counts = ("requests", "completions", "stored_completions")
    return {
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
        **_add_figures(parts).model_dump(),
        "low": _add_figures([part.low for part in parts]),
        "high": _add_figures([part.high for part in parts]),
        "most": None if None in bounds else _add_figures([bound for bound in bounds if bound is not None]),
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
        grown = sum(address.role is role for address in tree.nodes)
        counts[role].left_out[tree.question.question_id] = nodes - grown


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
    spec, missing = job.spec, _find_missing(role, job, counts)
    requests, completions = (sum(numbers) for numbers in zip(_Missing(0, 0), *missing.values(), strict=True))
    expected = expect(role, model, job, counts, requests, completions)
    if spec.growth.mode == "adaptive":
        expected = _scale_to_share(expected, _grown_share(role, spec, counts))
    most = _bound(role, model, job, missing, expected)
    low, expectation, high = figures_of(expected)
    return RolePlan(
        model=model.model,
        mode="batch" if is_asked_in_batches(model, spec) else "direct",
        requests=requests,
        completions=completions,
        stored_completions=counts[role].completions.total(),
        **expectation.model_dump(),
        low=low,
        high=_cut(high, most),
        most=most,
        basis=expected.basis,
    )


def _find_missing(role: Role, job: Job, counts: Mapping[Role, Count]) -> dict[str, _Missing]:
    """Return the requests and completions that a role still needs, by question.

    The judge needs one of each for a node: exactly, for existing nodes that the graders before it left open; at most,
    for nodes still to grow. With adaptive growth the numbers are upper limits for all roles.
    """
    spec, count, ids = job.spec, counts[role], [question.question_id for question in job.questions]
    if role is Role.EVALUATOR:
        to_grow = [_find_missing(judged, job, counts) for judged in judged_roles(spec)]
        judgements = {each: sum(of[each].completions for of in to_grow) + count.missing[each] for each in ids}
        return {each: _Missing(number, number) for each, number in judgements.items()}
    requests, nodes = requests_per_question(spec)[role], nodes_per_question(spec)[role]
    completions = {each: nodes - count.completions[each] - count.left_out[each] for each in ids}
    with named_place(spec.key_of(role)):
        has_siblings = call.takes_siblings(spec.roles[role])
    if spec.growth.mode == "adaptive" or not has_siblings:
        return {each: _Missing(number, number) for each, number in completions.items()}
    return {each: _Missing(requests - count.saved_requests[each], completions[each]) for each in ids}


def _bound(
    role: Role, model: ModelSpec, job: Job, missing: Mapping[str, _Missing], expected: "_Expected"
) -> Figures | None:
    """Return the most that a role's missing requests can use; None where a text has no bound."""
    asked = [question for question in job.questions if missing[question.question_id].completions]
    writers = [model, *(job.spec.roles[shown] for shown in shown_roles(role, job.spec))]
    if asked and not all(writer.max_tokens for writer in writers):
        return None
    most, is_shared = Usage(), bool(asked) and shares_prompts(role, model, job.spec)
    for question in asked:
        requests, completions = missing[question.question_id]
        billed = requests if is_shared else completions
        most.add(most_for_role(role, model, question, job.spec, job.prompts, billed, completions))
    cost = None if expected.exceeds_list else most.cost_usd
    return Figures(prompt_tokens=most.prompt_tokens, completion_tokens=most.completion_tokens, cost_usd=cost)


def _cut(high: Figures, most: Figures | None) -> Figures:
    """Cut the upper end of a range where it lies above the bound."""
    if most is None:
        return high
    costs = [each.cost_usd for each in (high, most) if each.cost_usd is not None]
    return Figures(
        prompt_tokens=min(high.prompt_tokens, most.prompt_tokens),
        completion_tokens=min(high.completion_tokens, most.completion_tokens),
        cost_usd=None if high.cost_usd is None else min(costs),
    )


class _Expected(NamedTuple):
    """Expected total tokens and cost of a role's further requests, and the basis of the estimate."""

    prompt: Range
    completion: Range
    cost: Range | None
    basis: str
    exceeds_list: bool = False
    """Whether the provider charged more than the listed prices."""


def _grown_share(role: Role, spec: RunSpec, counts: Mapping[Role, Count]) -> Range:
    """Return the share of full trees that adaptive growth asks for: its minimum, its share so far, and all."""
    player = PLAYERS[-1] if role is Role.EVALUATOR else role
    count, nodes = counts[player], nodes_per_question(spec)
    in_full = nodes[player] * len(count.left_out)
    so_far = 1 - count.left_out.total() / in_full if in_full else 1.0
    return Range(nodes[PLAYERS[0]] / nodes[player], so_far, 1.0)


def _scale_to_share(expected: _Expected, share: Range) -> _Expected:
    least, so_far = (f"{100 * part:.0f} %" for part in (share.low, share.expected))
    return expected._replace(
        prompt=expected.prompt.shared(share),
        completion=expected.completion.shared(share),
        cost=None if expected.cost is None else expected.cost.shared(share),
        basis=f"{expected.basis}; adaptive growth asks for {least} to all of it, so far {so_far}",
    )


def expect(
    role: Role, model: ModelSpec, job: Job, counts: Mapping[Role, Count], requests: int, completions: int
) -> _Expected:
    """Estimate from the stored completions of this config, else from assumptions."""
    spec, seen = job.spec, list(counts[role].seen.values())
    if not completions:
        return _Expected(_NOTHING, _NOTHING, _NOTHING, "all of it is stored")
    if not seen:
        prompt, completion = _assume_prompt_tokens(role, job, counts), _assume_completion_tokens(model, counts[role])
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
    cost = each_takes(costs, questions).times(completions)
    exceeds = expected.cost is not None and cost.expected > expected.cost.expected * (1 + 1e-9)
    return expected._replace(cost=cost, exceeds_list=exceeds)


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
    return f"assumed: {length}; 3 to 5 bytes a token. `--pilot 10` asks ten questions and quotes from their usage"


def longest(model: ModelSpec) -> int:
    return model.max_tokens or DEFAULT_MAX_TOKENS


def _assume_completion_tokens(model: ModelSpec, count: Count) -> Range:
    """Return the expected tokens of a completion: from those seen, else from other settings, else from max_tokens."""
    known = [*count.seen.values()] or [count.others]
    totals = [Total(one.completion_tokens, one.completions) for one in known if one.completions]
    return each_takes(totals, len(totals)) if totals else _SHARE_OF_MAX_TOKENS.times(longest(model))


def _assume_prompt_tokens(role: Role, job: Job, counts: Mapping[Role, Count]) -> Range:
    """Return the expected tokens of one prompt: from rendered ones, else an unwritten one and the texts to come."""
    count = counts[role]
    if count.prompts:
        return count.prompt_tokens.times(1 / count.prompts)
    unwritten = (_count_tokens(unwritten_prompt(role, question, job.prompts)) for question in job.questions)
    own = reduce(Range.plus, unwritten, _NOTHING).times(1 / max(len(job.questions), 1))
    sources = PLAYERS[-1:] if role is Role.EVALUATOR else shown_roles(role, job.spec)
    shown = (_assume_completion_tokens(job.spec.roles[above], counts[above]) for above in sources)
    return reduce(Range.plus, shown, own)
