"""Tables of the batches at providers and their items, recorded beside the samples before they are submitted.

A sample's key is in at most one open batch, across all runs and processes, so nothing is paid for twice. Rows stay
until their run has finished, however often its process restarts. The number of attempts of a sample belongs to the
dataset whose run asked for it.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from malt.config.roles import ModelSpec
from malt.llm.budget import Amount
from malt.llm.store.database import create_tables, declare_table, insert_into, samples_table
from malt.llm.store.samples import Store, split_chunks
from malt.processes import is_running, machine_id

LEASE_S = 1800.0
"""Seconds that a process on another machine may take to upload a recorded batch, and again to create it: longer
than either call is retried."""
LIFE_S = 31 * 86_400.0
"""Seconds until a batch has expired at the provider: its window of a day, and 30 days in which results are kept."""
_IN_DOUBT = ""
"""Placeholder for the provider's batch id from the call that creates the batch until its reply is recorded."""

submitting: set[str] = set()
"""Marks of the batches that this process is packing or submitting."""


def name_process() -> str:
    """Return the id of this process (`machine:pid`) among those that write to the store."""
    return f"{machine_id()}:{os.getpid()}"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, its model and its owner."""

    mark: str
    """Our own unique name of the batch, also in its metadata at the provider."""
    dataset: str
    model: str
    api_base: str | None
    api_key_env: str | None
    """Environment variable that holds the API key; never the key itself."""
    usd: float
    """Worst-case cost in dollars while the batch is open, then the actual cost."""
    tokens: int
    """Worst case in tokens while the batch is open, then the actual count."""
    owner: str = ""
    """Process that submits the batch, as `name_process` names it."""
    planned_at: float = 0.0
    """Time at which it was recorded, later that of the call to create it; in seconds since the epoch."""
    batch_id: str | None = None
    """Provider's id; None before the call to create the batch, then `_IN_DOUBT` until the id is recorded."""
    ended_at: float | None = None

    @property
    def asked(self) -> ModelSpec:
        """Model spec with what it takes to reach the provider, without sampling parameters."""
        return ModelSpec(model=self.model, api_base=self.api_base, api_key_env=self.api_key_env)

    @property
    def amount(self) -> Amount:
        return Amount(self.usd, self.tokens)

    @property
    def is_abandoned(self) -> bool:
        """Whether the owner no longer submits it: its process has ended, or its lease has run out."""
        if self.owner == name_process():
            return self.mark not in submitting
        place, _, process = self.owner.rpartition(":")
        return (place == machine_id() and not is_running(int(process))) or time.time() - self.planned_at > LEASE_S

    @property
    def is_in_doubt(self) -> bool:
        """Whether it may have been created at the provider, with its id unknown."""
        return self.batch_id == _IN_DOUBT

    @property
    def is_over(self) -> bool:
        """Whether its results are no longer kept at the provider."""
        return time.time() - self.planned_at > LIFE_S

    @property
    def label(self) -> str:
        """Name shown to users: the provider's id, else our mark."""
        return self.batch_id or self.mark


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One sample requested in a batch; samples of the same line of the batch share its `custom_id`."""

    key: str
    mark: str | None
    """Mark of the open batch that holds it; None once it has returned without an answer."""
    dataset: str
    custom_id: str
    question_id: str
    role: str
    address: str
    sample: int
    attempts: int = 0
    """Number of batches that returned it without an answer."""
    alone: bool = False
    """Whether to request it by itself: its siblings came without it, or the provider takes no `n`."""
    given_up: bool = False
    """Whether it is not requested again in this run."""


batches_table = declare_table("batches", Batch, ["dataset"])
items_table = declare_table("batch_items", BatchItem, ["mark", "dataset", "question_id"])
_OWN_COLUMNS = ("attempts", "alone", "given_up")
"""Columns of an item that are reset when another dataset requests it."""


class BatchStore:
    """Tables of batches and their items. Safe to use from several threads and processes at once."""

    def __init__(self, store: Store) -> None:
        self._transact, self._fetch, self._execute = store.transact, store.fetch, store.execute
        self._transact(create_tables)

    def plan(self, batch: Batch, items: Sequence[BatchItem]) -> set[str]:
        """Record a batch with its items; return the custom ids that it claimed with all of their samples.

        Another process has claimed the others, or they were answered meanwhile. Idempotent, so it can be repeated where
        the store went away before it confirmed the commit.
        """
        in_order = sorted(items, key=lambda item: item.key)  # so that processes claiming the same items never deadlock

        def claim(connection: sa.Connection) -> set[str]:
            noted = insert_into(connection, batches_table).values(asdict(batch)).on_conflict_do_nothing()
            connection.execute(noted)
            connection.execute(_claim_statement(connection), list(map(asdict, in_order)))
            held = set(connection.scalars(_STILL_MISSING, {"of": batch.mark}))
            lost = {item.custom_id for item in items if item.key not in held}
            for freed in _free_items(batch.mark, lost):
                connection.execute(freed)
            return lost

        return {item.custom_id for item in items} - self._transact(claim)

    def note_attempt(self, mark: str) -> bool:
        """Note that a batch is about to be created; return False where it was given up, so that it must not be."""
        return self._change(mark, batch_id=_IN_DOUBT, planned_at=time.time())

    def note_batch_id(self, mark: str, batch_id: str) -> bool:
        """Record the provider's id of a batch; return False where the batch was given up meanwhile."""
        return self._change(mark, batch_id=batch_id)

    def list_open(self, dataset: str | None = None, marks: Iterable[str] = ()) -> list[Batch]:
        """Return the open batches of a dataset, or of all; `marks` adds open batches of other datasets."""
        table = batches_table.c
        wanted = sa.true() if dataset is None else sa.or_(table.dataset == dataset, table.mark.in_(list(marks)))
        return self._batches(sa.and_(table.ended_at.is_(None), wanted))

    def count_samples(self) -> dict[str, int]:
        """Count the samples in each open batch, by its mark."""
        mark = items_table.c.mark
        counts = self._fetch(sa.select(mark, sa.func.count()).where(mark.is_not(None)).group_by(mark))
        return {mark: count for mark, count in counts}  # noqa: C416 - rows are no pairs to a type checker

    def find_open(self, question_ids: Iterable[str]) -> dict[str, Batch]:
        """Return the open batches that hold samples of these questions, by the samples' keys."""
        items = self.find_items(question_ids)
        batches = self.find_by_mark({item.mark for item in items.values() if item.mark})
        return {key: batches[item.mark] for key, item in items.items() if item.mark in batches}

    def find_by_mark(self, marks: Iterable[str]) -> dict[str, Batch]:
        """Return the recorded batches with these marks, open or ended."""
        found = [self._batches(batches_table.c.mark.in_(chunk)) for chunk in split_chunks(list(marks))]
        return {batch.mark: batch for batches in found for batch in batches}

    def list_ended(self, dataset: str) -> list[Batch]:
        """Return the batches of a dataset that have ended since its last finished run."""
        table = batches_table.c
        return self._batches(sa.and_(table.dataset == dataset, table.ended_at.is_not(None)))

    def note_spent(self, spent: Batch) -> None:
        """Record what a run has spent on direct requests, as an ended batch, so that the next run counts it too."""
        noted = sa.insert(batches_table).values({**asdict(spent), "ended_at": time.time()})
        self._execute(sa.delete(batches_table).where(batches_table.c.mark == spent.mark), noted)

    def read_items(self, mark: str) -> list[BatchItem]:
        return self._items(items_table.c.mark == mark)

    def find_items(self, question_ids: Iterable[str], dataset: str | None = None) -> dict[str, BatchItem]:
        """Return these questions' items that are in open batches, and those that were returned to a dataset."""
        table = items_table.c
        known = sa.or_(table.mark.is_not(None), table.dataset == dataset)
        chunks = split_chunks(list(dict.fromkeys(question_ids)))
        found = [self._items(sa.and_(table.question_id.in_(chunk), known)) for chunk in chunks]
        return {item.key: item for items in found for item in items}

    def settle(self, mark: str, taken: Amount, answered: Sequence[str], returned: Sequence[BatchItem]) -> None:
        """Close a batch whose answers are in the store: delete the answered items, and update the returned ones."""
        closed = {"ended_at": time.time(), "usd": taken.usd, "tokens": taken.tokens}
        noted = [{f"its_{name}": getattr(item, name) for name in ("key", "mark", *_OWN_COLUMNS)} for item in returned]

        def close(connection: sa.Connection) -> None:
            for chunk in split_chunks(list(answered)):
                connection.execute(sa.delete(items_table).where(items_table.c.key.in_(chunk), _in_batch(mark)))
            if returned:
                connection.execute(_RETURN, noted)
            connection.execute(sa.update(batches_table).where(_is_open(mark)).values(closed))

        self._transact(close)

    def release(self, mark: str) -> None:
        """Delete a batch that was never submitted, and free its items."""
        self._execute(*_free_items(mark), sa.delete(batches_table).where(batches_table.c.mark == mark))

    def forget(self, mark: str) -> None:
        """Abandon an open batch: free its items, and count it at its worst case."""
        ended = sa.update(batches_table).where(_is_open(mark)).values(ended_at=time.time())
        self._execute(*_free_items(mark), ended)

    def close(self, dataset: str) -> None:
        """Delete a finished run's ended batches and returned items: the next run requests missing samples again."""
        items, batches = items_table.c, batches_table.c
        returned = sa.delete(items_table).where(items.dataset == dataset, items.mark.is_(None))
        ended = sa.delete(batches_table).where(batches.dataset == dataset, batches.ended_at.is_not(None))
        self._execute(returned, ended)

    def _change(self, mark: str, **values: object) -> bool:
        return self._execute(sa.update(batches_table).where(_is_open(mark)).values(values)) == 1

    def _batches(self, which: sa.ColumnElement[bool]) -> list[Batch]:
        query = sa.select(batches_table).where(which).order_by(batches_table.c.planned_at)
        return [Batch(*row) for row in self._fetch(query)]

    def _items(self, which: sa.ColumnElement[bool]) -> list[BatchItem]:
        return [BatchItem(*row) for row in self._fetch(sa.select(items_table).where(which))]


def _claim_statement(connection: sa.Connection) -> sa.Insert:
    """Return the statement that claims items which no open batch holds and this dataset has not given up."""
    insert, table = insert_into(connection, items_table), items_table.c
    is_anothers = table.dataset != insert.excluded.dataset
    statement: sa.Insert = insert.on_conflict_do_update(
        index_elements=["key"],
        set_={
            **{name: insert.excluded[name] for name in ("mark", "dataset", "custom_id")},
            **{name: sa.case((is_anothers, insert.excluded[name]), else_=table[name]) for name in _OWN_COLUMNS},
        },
        where=sa.and_(table.mark.is_(None), sa.or_(sa.not_(table.given_up), is_anothers)),
    )
    return statement


def _free_items(mark: str, custom_ids: Iterable[str] | None = None) -> Iterator[sa.UpdateBase]:
    """Yield statements that free items of a batch, all or some; those that were in no batch before are deleted."""
    for chunk in [None] if custom_ids is None else split_chunks(sorted(custom_ids)):
        which = _in_batch(mark) if chunk is None else sa.and_(_in_batch(mark), items_table.c.custom_id.in_(chunk))
        yield sa.delete(items_table).where(which, items_table.c.attempts == 0)
        yield sa.update(items_table).where(which).values(mark=None)


_STILL_MISSING = sa.select(items_table.c.key).where(
    items_table.c.mark == sa.bindparam("of"),
    ~sa.exists().where(samples_table.c.key == items_table.c.key, samples_table.c.response.is_not(None)),
)
_RETURN = (
    sa.update(items_table)
    .where(items_table.c.key == sa.bindparam("its_key"), items_table.c.mark == sa.bindparam("its_mark"))
    .values(mark=None, **{column: sa.bindparam(f"its_{column}") for column in _OWN_COLUMNS})
)


def _in_batch(mark: str) -> sa.ColumnElement[bool]:
    return items_table.c.mark == mark


def _is_open(mark: str) -> sa.ColumnElement[bool]:
    return sa.and_(batches_table.c.mark == mark, batches_table.c.ended_at.is_(None))
