"""Results of a batch: rows for the store, samples to request again, and errors that end the run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from malt.config.roles import Role
from malt.errors import AccountEmpty, ConfigError, MaltError, RunStopped
from malt.llm.batch.api import ANSWERED, GONE, ItemResult, RemoteBatch, classify_refusal, read_bill, read_item
from malt.llm.budget import Amount, Tally, Usage
from malt.llm.client.completers import measure_usage, read_sample
from malt.llm.client.session import fill_rows
from malt.llm.faults import NoSiblings, Unavailable
from malt.llm.provider.errors import name_endpoint
from malt.llm.provider.routing import Route
from malt.llm.request import RequestFailed
from malt.llm.store.batches import Batch, BatchItem
from malt.llm.store.database import StoredSample

QUEUE_FULL = "token_limit_exceeded"
"""OpenAI's error code for more tokens in its queue than the organization's limit."""
_UNPAID = ("billing_hard_limit_reached", "insufficient_quota")
"""OpenAI's error codes for an account out of credit or past its quota."""


@dataclass
class BatchOutcome:
    """Outcome of a batch that has ended."""

    batch: Batch
    remote: RemoteBatch
    route: Route
    run: str
    attempts: int
    """Number of batches that may return a sample without an answer before it is given up."""
    rows: list[StoredSample] = field(default_factory=list)
    """Rows with answers, and rows with the errors of samples that are given up."""
    returned: list[BatchItem] = field(default_factory=list)
    """Items without an answer, updated for the store."""
    wasted: list[tuple[Role, Usage]] = field(default_factory=list)
    """Usage of answers that cannot be used."""
    ends_run: MaltError | None = None
    """Error that ends the run, if there is one."""
    has_siblings: bool = True
    """Whether the provider takes `n`, as far as this batch shows."""
    cost_usd: float | None = 0.0
    tokens: int | None = 0

    def read(self, items: Sequence[BatchItem], results: Sequence[ItemResult]) -> None:
        """Match the results to their items; an item without a result is returned."""
        groups: dict[str, list[BatchItem]] = {}
        for item in sorted(items, key=lambda item: item.sample):
            groups.setdefault(item.custom_id, []).append(item)
        for result in results:
            if group := groups.pop(result.custom_id, None):
                self._take(group, result)
        for group in groups.values():
            self._return(group, f"{self._place}: the batch ended ({self.remote.status}) without an answer")
        billed = sum(result.status == ANSWERED for result in results)
        if self.remote.status == GONE or billed < self.remote.completed:  # billed answers that cannot be read any more
            self._add_up(None, None)
        self.ends_run = self.ends_run or self._classify_status()

    @property
    def answered(self) -> list[str]:
        return [row.key for row in self.rows if row.response is not None]

    @property
    def taken(self) -> Amount:
        """Cost of the batch; an unknown cost counts at the worst case."""
        return self.batch.amount.unless_known(self.cost_usd, self.tokens)

    def count(self, held: Mapping[str, StoredSample], tally: Tally) -> None:
        """Count the answers that this batch wrote; `held`, the store's rows, may include another process's."""
        ours = {row.key: row.created_at for row in self.rows}
        for key, row in held.items():
            if row.response is not None and row.created_at == ours[key]:
                tally.add(Role(row.role), measure_usage(read_sample(row, cached=False)))

    @property
    def _place(self) -> str:
        return name_endpoint(self.batch.asked)

    def _take(self, group: Sequence[BatchItem], result: ItemResult) -> None:
        try:
            self._read(group, result)
        except NoSiblings as fault:
            self.has_siblings = False
            self._return(group, str(fault), alone=True)
        except RequestFailed as refused:
            self._return(group, str(refused), is_final=True)
        except (ConfigError, RunStopped) as stop:
            self.ends_run = self.ends_run or stop
            self._return(group, str(stop), counts=False)
        except MaltError as fault:
            self._return(group, str(fault))

    def _read(self, group: Sequence[BatchItem], result: ItemResult) -> None:
        if result.status != ANSWERED:
            has_schema = group[0].role == Role.EVALUATOR
            raise classify_refusal(result, self.batch.asked, self.route, len(group), has_schema=has_schema)
        self._answer(group, result.body)

    def _answer(self, group: Sequence[BatchItem], body: Mapping[str, JsonValue]) -> None:
        try:
            reply = read_item(self.batch.asked, body, time.time() - self.batch.planned_at)
        except Unavailable:
            usage = read_bill(self.batch.asked, body)  # it is billed nevertheless
            self.wasted.append((Role(group[0].role), usage))
            self._add_up(usage.cost_usd, usage.prompt_tokens + usage.completion_tokens or None)
            raise
        rows = fill_rows([self._row(item) for item in group], reply)
        self.rows += rows
        self.route.has_siblings = self.route.has_siblings or len(rows) > 1
        self._return(group[len(rows) :], "fewer samples came than were asked for", alone=True)
        self._add_up(reply.cost_usd, reply.total_tokens)

    def _add_up(self, cost_usd: float | None, tokens: int | None) -> None:
        self.cost_usd = None if self.cost_usd is None or cost_usd is None else self.cost_usd + cost_usd
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens

    def _return(
        self,
        group: Sequence[BatchItem],
        reason: str,
        *,
        alone: bool = False,
        counts: bool = True,
        is_final: bool = False,
    ) -> None:
        """Return items to be requested again, or give them up with a reason."""
        counts = counts and self.remote.status not in ("failed", "cancelled")
        for item in group:
            attempts = item.attempts + counts
            given_up = is_final or attempts >= self.attempts
            self.returned.append(replace(item, attempts=attempts, alone=alone or item.alone, given_up=given_up))
            if given_up:
                error = reason if is_final else f"{reason}; gave up after {attempts} batches"
                self.rows.append(replace(self._row(item), error=error))

    def _row(self, item: BatchItem) -> StoredSample:
        return StoredSample(
            key=item.key,
            question_id=item.question_id,
            role=item.role,
            model=self.batch.model,
            address=item.address,
            sample=item.sample,
            run=self.run,
        )

    def _classify_status(self) -> MaltError | None:
        """Return the error that ends the run where the whole batch failed or was cancelled, else None."""
        name = f"{self._place}: batch {self.remote.batch_id}"
        if self.remote.status == "failed" and self.remote.error_code in _UNPAID:
            return AccountEmpty(f"{name} was refused: {self.remote.error}; fix that, and run again")
        if self.remote.status == "failed" and self.remote.error_code != QUEUE_FULL:
            return ConfigError(
                f"{name} failed validation: {self.remote.error or 'no reason given'}; fix that, and run again"
            )
        if self.remote.status == "cancelled":
            return RunStopped(f"{name} was cancelled there; its answers are stored, run again to submit the rest")
        return None
