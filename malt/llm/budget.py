"""Usage, a run's requests, completions, tokens and cost by role; and Budget, the caps on tokens and cost.

The worst case of a request is held before it is sent, so no cap is ever exceeded. The worst case of a tree is promised
before it is begun, so that few trees are left half grown.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from malt.config.limits import Limits
from malt.config.roles import PLAYERS, Role
from malt.errors import BudgetSpent, MaltError
from malt.llm.rate_limit.rate import AdvertisedLimits
from malt.llm.request import CompletionRequest


@dataclass
class Usage:
    """Requests, completions, tokens and cost of one role. Tokens and cost count this run's new completions, and answers
    in batches that were billed and could not be read.
    """

    requests: int = 0
    completions: int = 0
    cached_completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """Cost in dollars; None as soon as one completion's cost is unknown."""

    def add(self, other: "Usage") -> None:
        """Add another usage; an unknown cost stays unknown."""
        self.requests += other.requests
        self.completions += other.completions
        self.cached_completions += other.cached_completions
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        known = self.cost_usd is not None and other.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None


@dataclass
class Tally:
    """Usage by role; each addition also goes to the tally above."""

    roles: dict[Role, Usage] = field(default_factory=lambda: {role: Usage() for role in Role})
    above: "Tally | None" = None
    run: str = ""
    """Name of the run whose usage it is."""

    def add(self, role: Role, usage: Usage) -> None:
        self.roles[role].add(usage)
        if self.above is not None:
            self.above.add(role, usage)

    def merge(self, other: "Tally") -> None:
        for role, usage in other.roles.items():
            self.add(role, usage)

    @property
    def answers(self) -> int:
        """Completions of the trained roles, new and stored."""
        return sum(self.roles[role].completions + self.roles[role].cached_completions for role in PLAYERS)

    @property
    def total(self) -> Usage:
        total = Usage()
        for usage in self.roles.values():
            total.add(usage)
        return total


_PICO = 10**12
"""Units in a dollar: money is counted in whole 10⁻¹² dollars, so that sums are exact."""


class Amount(NamedTuple):
    """A cost in dollars and tokens, either actual or a worst case."""

    usd: float
    tokens: int

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.usd + other.usd, self.tokens + other.tokens)

    def unless_known(self, usd: float | None, tokens: int | None) -> "Amount":
        """Return the actual cost; an unknown part of it counts as in this worst case."""
        return Amount(self.usd if usd is None else usd, self.tokens if tokens is None else tokens)


NOTHING = Amount(0.0, 0)


class Metered(Protocol):
    """Result of an attempt, as budgets and limiters need it; None means unknown."""

    @property
    def total_tokens(self) -> int | None: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def granted(self) -> AdvertisedLimits: ...


MeteredT = TypeVar("MeteredT", bound=Metered)


class _Cap:
    """One cap, with the amounts spent, held and promised under it, in whole units."""

    def __init__(self, limits: Limits, key: str, units: int, written: str) -> None:
        cap, self._whole_cap = getattr(limits, key), getattr(limits.whole, key)
        self.cap = math.inf if cap is None else math.floor(cap * units)
        self.spent = self.held = self.promised = 0
        self.units, self._key, self._written = units, key, written
        self._is_share = limits.whole is not limits

    def refusal(self, amount: int) -> str:
        """Say that a request of this size does not fit under the cap, which is named as the config gives it."""
        share, spent, size = (self._written.format(units / self.units) for units in (self.cap, self.spent, amount))
        cap = f"limits.{self._key} = {self._whole_cap:.15g}"
        cap += f", of which this process may spend {share}," if self._is_share else ""
        if amount > self.cap:
            return f"{cap} is too small for the next request, which may take {size}; raise it and run again"
        return f"{cap} is reached: {spent} are spent, the next request may take {size}; raise it and run again to go on"


class Budget:
    """The caps of a run. All methods belong to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._accounts = (
            _Cap(limits, "max_cost_usd", _PICO, "{:.4f} USD"),
            _Cap(limits, "max_tokens_total", 1, "{:,.0f} tokens"),
        )
        self._settled, self._tree_ended, self._next_tree = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._trees = 0
        self._reserved: dict[str, Amount] = {}
        """Amounts held by name, perhaps for days, in addition to those of requests in flight."""
        self._settled_names: dict[str, Amount] = {}

    @property
    def spent(self) -> Amount:
        """Cost of answers, and the most that failed requests may have cost."""
        dollars, tokens = self._accounts
        return Amount(dollars.spent / _PICO, tokens.spent)

    async def pay(self, worst: Amount, attempt: Callable[[], Awaitable[MeteredT]]) -> MeteredT:
        """Make an attempt once its worst case fits under the caps; wait while requests in flight may still free room.

        A refused request costs nothing. One of unknown cost (a time-out, a cancelled request) counts at its worst case.
        Raises `BudgetSpent` when the worst case can never fit.
        """
        held = bill = self._in_units(worst)
        await self._hold(held)
        try:
            answer = await attempt()
        except MaltError as error:
            if not getattr(error, "perhaps_billed", False):
                bill = [0, 0]
            raise
        else:
            bill = self._in_units(worst.unless_known(answer.cost_usd, answer.total_tokens))
            return answer
        finally:
            self._settle(held, bill)

    @property
    def room(self) -> Amount:
        """Amount neither spent nor held."""
        dollars, tokens = (account.cap - taken for account, taken in zip(self._accounts, self._taken(), strict=True))
        return Amount(dollars / _PICO, tokens)  # type: ignore[arg-type]  # no cap is an infinite one

    def has_room_for(self, worst: Amount) -> bool:
        return not self._too_short(self._in_units(worst))

    @property
    def reserved(self) -> dict[str, Amount]:
        return dict(self._reserved)

    @property
    def spent_unreserved(self) -> Amount:
        settled = self._add_up(self._settled_names.values())
        dollars, tokens = (account.spent - units for account, units in zip(self._accounts, settled, strict=True))
        return Amount(dollars / _PICO, tokens)

    def reserve(self, name: str, worst: Amount) -> None:
        """Hold an amount by name until `settle_reserved`, even beyond a cap; a second call replaces the amount."""
        if name not in self._settled_names:
            self._reserved[name] = worst

    def settle_reserved(self, name: str, taken: Amount) -> None:
        """Replace a reservation by its actual cost; idempotent."""
        if name not in self._settled_names:
            self._settled_names[name] = taken
            self._reserved.pop(name, None)
            self._settle([0, 0], self._in_units(taken))

    def refusal(self, worst: Amount) -> BudgetSpent:
        account, amount = self._too_short(self._in_units(worst))[0]
        return BudgetSpent(account.refusal(amount))

    @asynccontextmanager
    async def tree(self, worst: Amount) -> AsyncIterator[None]:
        """Context for growing a tree, entered once its worst case fits beside those of other trees, or as the only one.

        What a tree in progress has spent is counted twice, on the safe side.
        """
        promise = self._in_units(worst)
        async with self._next_tree:
            while self._trees and not self._has_room_for_tree(promise):
                self._tree_ended.clear()
                await self._tree_ended.wait()
            self._promise(promise, 1)
        try:
            yield
        finally:
            self._promise(promise, -1)
            self._tree_ended.set()

    def _in_units(self, amount: Amount) -> list[int]:
        return [math.ceil(part * account.units) for account, part in zip(self._accounts, amount, strict=True)]

    def _add_up(self, amounts: Iterable[Amount]) -> list[int]:
        return [sum(units) for units in zip([0, 0], *map(self._in_units, amounts), strict=True)]

    def _taken(self) -> list[int]:
        """Return the sum of spent, held and reserved units under each cap."""
        reserved = self._add_up(self._reserved.values())
        return [account.spent + account.held + units for account, units in zip(self._accounts, reserved, strict=True)]

    def _has_room_for_tree(self, promise: list[int]) -> bool:
        booked = zip(self._accounts, promise, strict=True)
        return all(account.spent + account.promised + amount <= account.cap for account, amount in booked)

    def _promise(self, promise: list[int], trees: int) -> None:
        self._trees += trees
        for account, amount in zip(self._accounts, promise, strict=True):
            account.promised += trees * amount

    async def _hold(self, amounts: list[int]) -> None:
        while short := self._too_short(amounts):
            for account, amount in short:
                if account.spent + amount > account.cap or not account.held:
                    raise BudgetSpent(account.refusal(amount))
            self._settled.clear()
            await self._settled.wait()
        for account, amount in zip(self._accounts, amounts, strict=True):
            account.held += amount

    def _too_short(self, amounts: list[int]) -> list[tuple[_Cap, int]]:
        booked = zip(self._accounts, self._taken(), amounts, strict=True)
        return [(account, amount) for account, taken, amount in booked if taken + amount > account.cap]

    def _settle(self, held: list[int], bill: list[int]) -> None:
        for account, kept, billed in zip(self._accounts, held, bill, strict=True):
            account.held -= kept
            account.spent += billed
        self._settled.set()


def estimate_worst_case(request: CompletionRequest, samples: int, prices: tuple[float, float]) -> Amount:
    """Return the most that `samples` of a request can cost, at (prompt, completion) dollars a token."""
    prompt = most_prompt_tokens(request)
    completions = samples * (request.model.max_tokens or 0)
    return Amount(prompt * prices[0] + completions * prices[1], prompt + completions)


def most_prompt_tokens(request: CompletionRequest) -> int:
    """Return the most tokens that a request's prompt can have, whatever the tokenizer.

    A text has at most as many tokens as UTF-8 bytes: a tokenizer merges bytes (byte-level BPE, as of GPT-2), or falls
    back to a token a byte (SentencePiece's `byte_fallback`). Chat templates add about 5 tokens a message, and some a
    system text; this allows 16 a message and 64 a prompt.
    """
    schema = 0 if request.schema is None else _most_schema_tokens(request.schema)
    return 64 + schema + sum(len(message.content.encode()) + 16 for message in request.messages)


@cache
def _most_schema_tokens(schema: type[BaseModel]) -> int:
    return _SCHEMA_TOKENS + len(json.dumps(schema.model_json_schema()))


_SCHEMA_TOKENS = 512
"""Most tokens around a JSON schema; Anthropic, which takes it as a tool, adds 159 to 530
(https://docs.anthropic.com/en/docs/tool-use-pricing-and-tokens)."""
