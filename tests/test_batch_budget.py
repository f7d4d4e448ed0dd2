"""Caps in batch mode: the whole batch is held at its worst case before it is handed in, at the price of batches."""

from pathlib import Path

import pytest

from malt.inputs import read_inputs
from malt.llm.batch_store import BatchStore
from malt.llm.session import close_sessions
from malt.llm.store import Store
from malt.outlay import most_for_tree
from malt.settings import Settings
from malt.spec import Limits, RunSpec
from malt.trees.assessment import NOTHING_MISSING
from tests.batches import BatchProvider
from tests.batching import batched, grown
from tests.batching import provider as provider
from tests.specs import role_of, spec_of, write_questions

QUESTIONS = 4
PER_TOKEN = {"prompt_tokens": 0.075e-6, "completion_tokens": 0.3e-6}
"""What gpt-4o-mini costs in a batch, in dollars."""


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    direct = spec_of(provider, write_questions(tmp_path, QUESTIONS))
    role = role_of(provider, "gpt-4o-mini").model_copy(update={"max_tokens": 40})
    roles = direct.roles.model_copy(update=dict.fromkeys(("generator", "verifier", "refiner"), role))
    return batched(direct.model_copy(update={"roles": roles}))


def capped(spec: RunSpec, trees: float) -> RunSpec:
    """Cap a run at what so many trees take at most."""
    inputs = read_inputs(spec)
    most = most_for_tree(inputs.questions[0], spec, inputs.prompts)
    return spec.model_copy(update={"limits": Limits(max_cost_usd=trees * most.usd)})


def billed(provider: BatchProvider) -> float:
    """What the provider would bill: prompts once an item, all completions."""
    bodies = [line["response"]["body"] for batch in provider.batches for line in batch.answered]
    return sum(float(body["usage"][kind]) * price for body in bodies for kind, price in PER_TOKEN.items())


def test_the_tally_is_what_the_provider_bills_for_batches(provider: BatchProvider, spec: RunSpec) -> None:
    _, tally = grown(spec)
    assert tally.total.cost_usd == pytest.approx(billed(provider))


@pytest.mark.parametrize("trees", [0.3, 0.6, 1.0, 1.5, 2.5])
def test_what_is_spent_is_never_above_the_cap(provider: BatchProvider, spec: RunSpec, trees: float) -> None:
    limited = capped(spec, trees)
    shortfall, _ = grown(limited)
    cap = limited.limits.max_cost_usd
    assert cap is not None
    assert billed(provider) <= cap
    assert shortfall == NOTHING_MISSING or "max_cost_usd" in (shortfall.stopped or "")


def test_a_cap_that_has_room_for_two_trees_grows_two_at_a_time(provider: BatchProvider, spec: RunSpec) -> None:
    grown(capped(spec, 2.5))
    assert len(provider.lines(provider.batches[0])) == 2


def test_a_cap_below_one_request_asks_nothing(provider: BatchProvider, spec: RunSpec) -> None:
    shortfall, _ = grown(capped(spec, 0.001))
    assert "max_cost_usd" in (shortfall.stopped or "")
    assert provider.batches == []


def test_a_run_that_comes_again_has_spent_what_it_spent_before(provider: BatchProvider, spec: RunSpec) -> None:
    one_tree = spec.model_copy(update={"questions": spec.questions.model_copy(update={"limit": 1})})
    suspended = batched(capped(one_tree, 0.3), wait=False)
    provider.stages = ["in_progress", "completed"]
    provider.cost_usd = (suspended.limits.max_cost_usd or 0) / 10
    for number in range(20):
        shortfall, _ = grown(suspended, run=f"run {number}")
        close_sessions()  # as another process would begin
        if shortfall.waits is None:
            break
    assert "max_cost_usd" in (shortfall.stopped or "")
    assert 4 < provider.paid.total() <= 10


def test_what_lies_with_the_provider_is_held_before_a_run_that_comes_again_hands_in_more(
    provider: BatchProvider, spec: RunSpec
) -> None:
    one_tree = spec.model_copy(update={"questions": spec.questions.model_copy(update={"limit": 1})})
    suspended = batched(capped(one_tree, 0.3), wait=False)
    cap = suspended.limits.max_cost_usd or 0
    provider.stages = ["in_progress", "in_progress", "completed"]
    for number in range(8):
        grown(suspended, run=f"run {number}")
        close_sessions()
        with Store(Settings().store) as store:
            book = BatchStore(store)
            assert sum(batch.usd for batch in (*book.ended(spec.name), *book.under_way(spec.name))) <= cap


def test_tokens_are_capped_too(provider: BatchProvider, spec: RunSpec) -> None:
    limited = spec.model_copy(update={"limits": Limits(max_tokens_total=3000)})
    shortfall, tally = grown(limited)
    assert "max_tokens_total" in (shortfall.stopped or "")
    assert tally.total.prompt_tokens + tally.total.completion_tokens <= 3000
