"""Caps in batch mode: a batch's worst case, at batch prices, is reserved before it is submitted."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from malt.config.limits import Limits
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.batch_mode import ask_in_batches
from malt.engine.fill import fill
from malt.engine.job import read_job
from malt.engine.run import Run, most_for_tree
from malt.errors import ConfigError
from malt.llm.client.session import Session, close_sessions, open_session
from malt.llm.store.batches import BatchStore
from malt.llm.store.samples import Store
from malt.questions.question import Question
from malt.trees.pipeline import NOTHING_MISSING, Shortfall
from tests.batches import BatchProvider
from tests.batching import QUICK, batched, grown
from tests.batching import provider as provider
from tests.mishaps import no_choices, refusal, when
from tests.specs import role_of, spec_of, write_questions

QUESTIONS = 4
PER_TOKEN = {"prompt_tokens": 0.075e-6, "completion_tokens": 0.3e-6}
"""Price of gpt-4o-mini in a batch, in dollars a token."""
DIRECT = "mistral/mistral-small-latest"
"""A model without a batch API whose price LiteLLM knows."""


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    direct = spec_of(provider, write_questions(tmp_path, QUESTIONS))
    role = role_of(provider, "gpt-4o-mini").model_copy(update={"max_tokens": 40})
    roles = direct.roles.model_copy(update=dict.fromkeys(("generator", "verifier", "refiner"), role))
    return batched(direct.model_copy(update={"roles": roles}))


def capped(spec: RunSpec, trees: float) -> RunSpec:
    """Cap a run at the worst-case cost of this number of trees."""
    job = read_job(spec)
    worst = most_for_tree(job.questions[0], spec, job.prompts)
    return spec.model_copy(update={"limits": Limits(max_cost_usd=trees * worst.usd)})


def bill_of(provider: BatchProvider) -> float:
    """Return the provider's bill: each item's prompt once, and all completions."""
    bodies = [line["response"]["body"] for batch in provider.batches for line in batch.answered]
    return sum(float(body["usage"][kind]) * price for body in bodies for kind, price in PER_TOKEN.items())


def test_the_tally_is_what_the_provider_bills_for_batches(provider: BatchProvider, spec: RunSpec) -> None:
    _, tally = grown(spec)
    assert tally.total.cost_usd == pytest.approx(bill_of(provider))


@pytest.mark.parametrize("trees", [0.3, 0.6, 1.0, 1.5, 2.5])
def test_spending_never_exceeds_the_cap(provider: BatchProvider, spec: RunSpec, trees: float) -> None:
    limited = capped(spec, trees)
    shortfall, _ = grown(limited)
    cap = limited.limits.max_cost_usd
    assert cap is not None
    assert bill_of(provider) <= cap
    assert shortfall == NOTHING_MISSING or "max_cost_usd" in (shortfall.stopped or "")


def test_a_cap_that_has_room_for_two_trees_grows_two_at_a_time(provider: BatchProvider, spec: RunSpec) -> None:
    grown(capped(spec, 2.5))
    assert len(provider.lines(provider.batches[0])) == 2


def test_a_cap_below_one_request_asks_nothing(provider: BatchProvider, spec: RunSpec) -> None:
    shortfall, _ = grown(capped(spec, 0.001))
    assert "max_cost_usd" in (shortfall.stopped or "")
    assert provider.batches == []


def test_a_resumed_run_has_spent_what_it_spent_before(provider: BatchProvider, spec: RunSpec) -> None:
    one_tree = spec.model_copy(update={"questions": spec.questions.model_copy(update={"limit": 1})})
    suspended = batched(capped(one_tree, 0.3), wait=False)
    provider.stages = ["in_progress", "completed"]
    provider.cost_usd = (suspended.limits.max_cost_usd or 0) / 10
    for number in range(20):
        shortfall, _ = grown(suspended, run=f"run {number}")
        close_sessions()  # as in a new process
        if shortfall.waits is None:
            break
    assert "max_cost_usd" in (shortfall.stopped or "")
    assert 4 < provider.paid.total() <= 10


def test_a_resumed_run_reserves_its_open_batches_before_it_submits_more(provider: BatchProvider, spec: RunSpec) -> None:
    one_tree = spec.model_copy(update={"questions": spec.questions.model_copy(update={"limit": 1})})
    suspended = batched(capped(one_tree, 0.3), wait=False)
    cap = suspended.limits.max_cost_usd or 0
    provider.stages = ["in_progress", "in_progress", "completed"]
    for number in range(8):
        grown(suspended, run=f"run {number}")
        close_sessions()
        with Store(Settings().store) as store:
            batches = BatchStore(store)
            assert sum(batch.usd for batch in (*batches.list_ended(spec.name), *batches.list_open(spec.name))) <= cap


def with_direct(spec: RunSpec, provider: BatchProvider, role: str) -> RunSpec:
    """Let a model without a batch API play one role."""
    model = role_of(provider, "").model_copy(update={"model": DIRECT, "max_tokens": 40})
    return spec.model_copy(update={"roles": spec.roles.model_copy(update={role: model})})


def test_direct_requests_count_for_a_resumed_run(provider: BatchProvider, spec: RunSpec) -> None:
    one_tree = spec.model_copy(update={"questions": spec.questions.model_copy(update={"limit": 1})})
    suspended = batched(capped(with_direct(one_tree, provider, "verifier"), 0.2), wait=False)
    provider.stages = ["in_progress", "completed"]
    provider.cost_usd = (suspended.limits.max_cost_usd or 0) / 14
    for number in range(30):
        shortfall, _ = grown(suspended, run=f"run {number}")
        close_sessions()
        if shortfall.waits is None:
            break
    assert "max_cost_usd" in (shortfall.stopped or "")
    assert 0 < provider.paid.total() < len(provider.requests) <= 14


def test_a_direct_request_waits_until_batches_leave_room(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = ["in_progress", "completed"]
    grown(batched(spec, wait=False), run="one")
    with Store(Settings().store) as store:
        [open_batch] = BatchStore(store).list_open(spec.name)
    limited = spec.model_copy(update={"limits": Limits(max_cost_usd=open_batch.usd)})
    grown(with_direct(limited, provider, "generator"), run="two")
    assert DIRECT.partition("/")[2] in {request.model for request in provider.requests}


def test_the_cost_of_an_unusable_answer_is_counted(provider: BatchProvider, spec: RunSpec) -> None:
    provider.faults = when(lambda request: request.number == 0, no_choices())
    shortfall, tally = grown(spec)
    assert shortfall == NOTHING_MISSING
    assert tally.total.cost_usd == pytest.approx(bill_of(provider))
    assert provider.paid.total() == QUESTIONS * 13 + 1


def test_an_unusable_answer_without_usage_makes_the_cost_unknown(provider: BatchProvider, spec: RunSpec) -> None:
    provider.faults, provider.counts_tokens = when(lambda request: request.number == 0, no_choices()), False
    _, tally = grown(spec)
    assert tally.total.cost_usd is None


def session_of(spec: RunSpec, run: str) -> Session:
    return open_session(Settings(), spec.limits, run=run)


def test_a_batch_that_another_run_collected_is_no_longer_reserved(provider: BatchProvider, spec: RunSpec) -> None:
    limited = capped(spec, 4.5)
    provider.stages = ["in_progress", "completed"]
    assert grown(batched(limited, wait=False), run="one")[0].waits is not None
    budget = session_of(limited, "one").budget
    assert len(budget.reserved) == 1
    assert grown(batched(limited, wait=False), run="two")[0].waits is not None
    assert grown(limited, run="one")[0] == NOTHING_MISSING
    assert budget.reserved == {}
    assert budget.spent.usd == pytest.approx(bill_of(provider))


def test_a_batch_that_could_not_be_submitted_is_no_longer_reserved(provider: BatchProvider, spec: RunSpec) -> None:
    provider.batch_faults = lambda *_: refusal(400, "No batches today.", None)
    with pytest.raises(ConfigError, match="No batches today"):
        grown(capped(spec, 4.5))
    budget = session_of(capped(spec, 4.5), "one").budget
    assert budget.reserved == {}
    assert budget.room.usd == capped(spec, 4.5).limits.max_cost_usd


def test_runs_at_once_in_one_session_hold_and_count_each_batch_once(provider: BatchProvider, spec: RunSpec) -> None:
    limited = capped(spec, 4.5)
    job, session = read_job(limited), session_of(limited, "one")

    async def grow(question: Question) -> Shortfall:
        by_batches = partial(ask_in_batches, rhythm=QUICK)
        return (await fill(job.only([question]), Run("one"), by_batches)).shortfall

    async def grow_all() -> list[Shortfall]:
        return await asyncio.gather(*map(grow, job.questions))

    assert asyncio.run(grow_all()) == [NOTHING_MISSING] * QUESTIONS
    assert session.budget.reserved == {}
    assert session.budget.spent.usd == pytest.approx(bill_of(provider))


def test_tokens_are_capped_too(provider: BatchProvider, spec: RunSpec) -> None:
    limited = spec.model_copy(update={"limits": Limits(max_tokens_total=3000)})
    shortfall, tally = grown(limited)
    assert "max_tokens_total" in (shortfall.stopped or "")
    assert tally.total.prompt_tokens + tally.total.completion_tokens <= 3000
