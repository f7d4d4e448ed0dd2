"""Budgets: no cap is ever exceeded, whatever requests cost and however they fail; started trees are finished."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.errors import BudgetSpent
from malt.llm.budget import NOTHING, Amount, Budget, estimate_worst_case
from malt.llm.faults import RateLimited, Unavailable
from malt.llm.request import CompletionRequest, Message
from tests.replies import Reply

RUNS = 1_000


class Simulation:
    """A run with random caps, prices, failures and concurrency; `billed_…` is the provider's bill."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.limits = Limits(
            max_cost_usd=self.random.choice([None, self.random.uniform(0, 5)]),
            max_tokens_total=self.random.choice([None, self.random.randrange(20_000)]),
        )
        self.budget = Budget(self.limits)
        self.slots = asyncio.Semaphore(self.random.randint(1, 64))
        self.prices = self.random.uniform(0, 1e-3), self.random.uniform(0, 4e-3)
        self.billed_usd, self.billed_tokens, self.refused = 0.0, 0, 0

    async def run(self) -> None:
        await asyncio.gather(*(self.request() for _ in range(self.random.randrange(80))))

    async def request(self) -> None:
        prompt, completion = self.random.randrange(200), self.random.randrange(400)
        worst = self.price(prompt, completion)
        async with self.slots:
            try:
                await self.budget.pay(worst, lambda: self.answer(prompt, self.random.randint(0, completion), worst))
            except BudgetSpent:
                self.refused += 1
            except (Unavailable, RateLimited):
                pass

    async def answer(self, prompt: int, completion: int, worst: Amount) -> Reply:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        match self.random.choice(["answer", "answer", "answer", "429", "500", "timeout", "silent"]):
            case "429":
                raise RateLimited("429")
            case "500":
                raise Unavailable("500")
            case "timeout":
                self.bill(worst)
                raise Unavailable("timeout", perhaps_billed=True)
            case "silent":
                self.bill(worst)
                return Reply(None, None)
        actual = self.price(prompt, completion)
        self.bill(actual)
        return Reply(actual.tokens, actual.usd)

    def price(self, prompt: int, completion: int) -> Amount:
        return Amount(prompt * self.prices[0] + completion * self.prices[1], prompt + completion)

    def bill(self, amount: Amount) -> None:
        self.billed_usd += amount.usd
        self.billed_tokens += amount.tokens


def test_in_a_thousand_runs_spending_never_passes_a_cap() -> None:
    refused_runs = 0
    for seed in range(RUNS):
        simulation = Simulation(seed)
        asyncio.run(simulation.run())
        limits, spent = simulation.limits, simulation.budget.spent
        assert limits.max_cost_usd is None or simulation.billed_usd <= limits.max_cost_usd, seed
        assert limits.max_tokens_total is None or simulation.billed_tokens <= limits.max_tokens_total, seed
        assert spent.usd == pytest.approx(simulation.billed_usd, abs=1e-9)
        assert spent.tokens == simulation.billed_tokens
        refused_runs += bool(simulation.refused)
    assert RUNS / 4 < refused_runs < RUNS, "some runs must reach a cap and some must not"


def costing(usd: float) -> Callable[[], Awaitable[Reply]]:
    async def attempt() -> Reply:
        await asyncio.sleep(0.001)
        return Reply(cost_usd=usd)

    return attempt


async def test_a_request_waits_while_those_in_flight_may_turn_out_cheaper() -> None:
    budget = Budget(Limits(max_cost_usd=1.0))
    replies = await asyncio.gather(*(budget.pay(Amount(0.6, 0), costing(0.1)) for _ in range(5)))
    assert len(replies) == 5
    assert budget.spent.usd == pytest.approx(0.5)
    with pytest.raises(BudgetSpent, match=r"limits.max_cost_usd = 1 is reached: 0.5000 USD are spent"):
        await budget.pay(Amount(0.6, 0), costing(0.1))


async def test_the_error_of_a_token_cap_counts_tokens() -> None:
    budget = Budget(Limits(max_tokens_total=1000))
    await budget.pay(Amount(0.0, 900), costing(0.0))
    assert budget.spent.tokens == 10
    with pytest.raises(BudgetSpent, match=r"max_tokens_total = 1000 is reached: 10 tokens are spent.*take 991 tokens"):
        await budget.pay(Amount(0.0, 991), costing(0.0))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_tokens_total=500), "limits.max_tokens_total = 500 is too small for the next request"),
        (
            Limits(max_tokens_total=5000001).shares(10_000)[0],
            "limits.max_tokens_total = 5000001, of which this process",
        ),
    ],
)
async def test_a_cap_below_one_request_is_named_as_the_config_gives_it(limits: Limits, message: str) -> None:
    with pytest.raises(BudgetSpent, match=f"^{message}.*may take 501 tokens; raise it and run again$"):
        await Budget(limits).pay(Amount(0.0, 501), costing(0.0))


async def test_without_a_cap_everything_is_allowed_and_counted() -> None:
    budget = Budget(Limits())
    await budget.pay(Amount(1.0, 10), costing(1000))
    assert budget.spent == (1000, 10)


async def grow_trees(cap: float, tree_usd: float, worst_usd: float, trees: int = 40) -> tuple[int, int]:
    """Grow trees of ten requests each; return the numbers of finished trees, and of started but unfinished ones."""
    budget, finished, started = Budget(Limits(max_cost_usd=cap)), 0, 0

    async def grow() -> None:
        nonlocal finished, started
        async with budget.tree(Amount(worst_usd, 0)):
            for request in range(10):
                await budget.pay(Amount(worst_usd / 10, 0), costing(tree_usd / 10))
                started += request == 0
        finished += 1

    await asyncio.gather(*(grow() for _ in range(trees)), return_exceptions=True)
    return finished, started - finished


async def test_a_budget_for_few_trees_finishes_them_and_leaves_at_most_one_half_grown() -> None:
    finished, unfinished = await grow_trees(cap=10.0, tree_usd=1.0, worst_usd=3.0)
    assert finished >= 9
    assert unfinished <= 1


async def test_a_tree_that_may_cost_more_than_the_cap_is_begun_alone_and_may_turn_out_cheaper() -> None:
    assert await grow_trees(cap=2.1, tree_usd=0.9, worst_usd=3.0, trees=2) == (2, 0)


@given(text=st.text(max_size=200), samples=st.integers(1, 9))
def test_the_worst_case_is_a_token_a_byte_and_every_completion_at_full_length(text: str, samples: int) -> None:
    model = ModelSpec(model="openai/m", max_tokens=100)
    request = CompletionRequest(Role.VERIFIER, model, (Message("user", text),), "q", "", samples)
    assert estimate_worst_case(request, samples, (0, 1)).usd == samples * 100
    assert estimate_worst_case(request, samples, (1, 0)).usd >= len(text.encode())
    assert estimate_worst_case(request, samples, (0, 0)).tokens >= len(text.encode()) + samples * 100


# Reservations by name


def test_a_reservation_is_held_once_and_counted_once() -> None:
    budget = Budget(Limits(max_cost_usd=1.0))
    for usd in (0.5, 0.75, 0.75):
        budget.reserve("batch", Amount(usd, 0))
    assert budget.room.usd == 0.25
    for _ in range(2):
        budget.settle_reserved("batch", Amount(0.125, 0))
    budget.reserve("batch", Amount(0.75, 0))  # as by a run that does not know yet that the batch has ended
    assert budget.room.usd == 0.875
    assert budget.reserved == {}


async def test_direct_spending_is_counted_apart_from_reservations() -> None:
    budget = Budget(Limits(max_cost_usd=1.0))
    budget.settle_reserved("batch", Amount(0.5, 7))
    await budget.pay(Amount(0.25, 10), costing(0.125))
    assert budget.spent_unreserved == Amount(0.125, 10)


@pytest.mark.virtual_time
async def test_a_request_does_not_wait_for_reservations() -> None:
    budget = Budget(Limits(max_cost_usd=1.0))
    budget.reserve("batch", Amount(1.0, 0))
    with pytest.raises(BudgetSpent):
        await asyncio.wait_for(budget.pay(Amount(0.5, 0), costing(0.5)), 60)
    budget.settle_reserved("batch", NOTHING)
    assert await budget.pay(Amount(0.5, 0), costing(0.5))
