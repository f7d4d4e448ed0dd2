"""Collecting: a `Complete` that notes what is to be asked for in batches, and asks the other models at once."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from malt.concurrency import gather_all
from malt.config.roles import Role
from malt.llm.batch.api import make_custom_id, takes_batches
from malt.llm.budget import Amount
from malt.llm.client.completers import SessionCompleter, group_runs, with_fallbacks
from malt.llm.client.session import Session
from malt.llm.request import CompletionRequest
from malt.llm.store.batches import BatchItem
from malt.llm.store.database import StoredSample
from malt.llm.usage import Tally


@dataclass(frozen=True, slots=True)
class WantedSamples:
    """Samples to ask for: first … first+count-1 of a request."""

    request: CompletionRequest
    first: int
    count: int

    @property
    def custom_id(self) -> str:
        return make_custom_id(self.request, self.first)


class BatchCollector(SessionCompleter):
    """A completer for some questions of a run in batch mode, made anew for each level.

    `items` are what the batches know of these questions' samples; `failed` is what other models could not be brought
    to answer in this run, and grows.
    """

    def __init__(
        self,
        session: Session,
        known: dict[str, StoredSample],
        items: Mapping[str, BatchItem],
        failed: set[str],
        asks: Collection[Role],
        tally: Tally,
    ) -> None:
        super().__init__(session, known, asks, tally.run)
        self.tally = tally
        self.items = items
        self.failed = failed
        self.wanted: dict[str, WantedSamples] = {}
        self.waits_for: set[str] = set()
        """Marks of the batches that hold what is missing."""
        self.put_off = 0
        """Samples of other models that the budget has no room for while batches are under way."""
        self.short: Amount | None = None
        """Worst case of the first request for such."""
        self.stored: Counter[Role] = Counter()
        """Samples that an earlier run had."""

    def _count_stored(self, request: CompletionRequest) -> None:
        for sample, key in enumerate(request.keys):
            row = self.answer(request, sample)
            if row is not None and key not in self._counted:
                self._counted.add(key)
                self.stored[request.role] += row.run != self.tally.run

    async def _ask_in_turn(self, request: CompletionRequest, missing: Sequence[int]) -> None:
        """Note for a batch what the model has not given up, then turn to its fallbacks for the rest."""
        left, fallbacks = list(missing), len(request.model.fallbacks)
        for place, asked in enumerate(with_fallbacks(request)):
            to_ask = [sample for sample in left if not self._is_given_up(asked, sample)]
            if takes_batches(asked.model):
                self._note(asked, to_ask)
            elif not self._puts_off(asked, to_ask):
                buy = partial(self._request_run, asked, has_spare=place < fallbacks)
                await gather_all(buy(first, count) for first, count in group_runs(to_ask))
                to_ask = [sample for sample in to_ask if self.answer(request, sample) is not None]
                self.failed.update(asked.keys[sample] for sample in left if self.answer(request, sample) is None)
            left = [sample for sample in left if sample not in to_ask]
            if not left:
                return

    def _puts_off(self, request: CompletionRequest, samples: Sequence[int]) -> bool:
        """Leave samples to the next round where they would wait for what is held for batches."""
        if not samples or not self.session.budget.reserved:
            return False
        worst = self.session.worst_case(request, len(samples))
        if self.session.budget.has_room_for(worst):
            return False
        self.short, self.put_off = self.short or worst, self.put_off + len(samples)
        return True

    def _is_given_up(self, request: CompletionRequest, sample: int) -> bool:
        key = request.keys[sample]
        return key in self.failed or (key in self.items and self.items[key].given_up)

    def _note(self, request: CompletionRequest, samples: Sequence[int]) -> None:
        under_way = {sample: mark for sample in samples if (mark := self._mark(request, sample))}
        self.waits_for.update(under_way.values())
        for first, count in self._parts(request, [sample for sample in samples if sample not in under_way]):
            wanted = WantedSamples(self.with_draw(request, first), first, count)
            self.wanted[wanted.custom_id] = wanted

    def _mark(self, request: CompletionRequest, sample: int) -> str | None:
        item = self.items.get(request.keys[sample])
        return None if item is None else item.mark

    def _parts(self, request: CompletionRequest, samples: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Cut samples into what one item asks for: siblings at once, where they come so."""
        has_siblings = self.session.endpoint(request.model).siblings
        together = [sample for sample in samples if has_siblings and not self._is_alone(request, sample)]
        yield from group_runs(together)
        yield from ((sample, 1) for sample in samples if sample not in together)

    def _is_alone(self, request: CompletionRequest, sample: int) -> bool:
        item = self.items.get(request.keys[sample])
        return item is not None and item.alone
