"""Batches in the store: a key is in one open batch at most, whichever run asks."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from malt.llm.budget import Amount
from malt.llm.store.batches import LEASE_S, Batch, BatchItem, BatchStore, name_process
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import Store
from malt.processes import machine_id
from tests.crashing import PROCESSES


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


@pytest.fixture
def batch_store(store: Store) -> BatchStore:
    return BatchStore(store)


def batch(mark: str, dataset: str = "sums") -> Batch:
    return Batch(mark, dataset, "openai/m", None, "KEY", 1.5, 100, name_process(), time.time())


def item(key: str, mark: str, custom_id: str = "") -> BatchItem:
    return BatchItem(key, mark, "sums", custom_id or key, "q1", "generator", "", 0)


def returned(key: str, attempts: int = 1, *, alone: bool = False, given_up: bool = False) -> BatchItem:
    return replace(item(key, "one"), attempts=attempts, alone=alone, given_up=given_up)


def test_a_planned_batch_is_open_until_it_is_settled(batch_store: BatchStore) -> None:
    assert batch_store.plan(batch("one"), [item("a", "one"), item("b", "one")]) == {"a", "b"}
    assert [each.batch_id for each in batch_store.list_open("sums")] == [None]
    batch_store.note_batch_id("one", "batch_1")
    assert [each.batch_id for each in batch_store.list_open("sums")] == ["batch_1"]
    batch_store.settle("one", Amount(0.5, 40), ["a"], [returned("b")])
    assert batch_store.list_open("sums") == []
    assert batch_store.find_items(["q1"], "sums") == {"b": replace(item("b", "one"), mark=None, attempts=1)}


def test_a_key_in_an_open_batch_is_not_claimed_again(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    assert batch_store.plan(batch("two"), [item("a", "two"), item("b", "two")]) == {"b"}
    assert [each.key for each in batch_store.read_items("one")] == ["a"]


def test_a_key_that_was_answered_meanwhile_is_not_claimed(store: Store, batch_store: BatchStore) -> None:
    store.write([StoredSample("a", "q1", "generator", "openai/m", "", 0, "{}", None, None, 0.0)])
    assert batch_store.plan(batch("one"), [item("a", "one"), item("b", "one")]) == {"b"}
    assert "a" not in batch_store.find_items(["q1"], "sums")


def test_an_item_that_overlaps_another_batch_is_left_to_it(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a.1", "one")])
    siblings = [item("a.0", "two", "a"), item("a.1", "two", "a")]
    assert batch_store.plan(batch("two"), siblings) == set()
    assert batch_store.read_items("two") == []
    assert "a.0" not in batch_store.find_items(["q1"], "sums")


def test_a_returned_item_can_be_claimed_again_and_keeps_its_count_of_attempts(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    batch_store.settle("one", Amount(0, 0), [], [returned("a")])
    assert batch_store.plan(batch("two"), [item("a", "two")]) == {"a"}
    [claimed] = batch_store.read_items("two")
    assert claimed.attempts == 1


def test_an_item_given_up_is_not_claimed_until_the_run_ends(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    batch_store.settle("one", Amount(0, 0), [], [returned("a", given_up=True)])
    assert batch_store.plan(batch("two"), [item("a", "two")]) == set()
    batch_store.close("sums")
    assert batch_store.plan(batch("three"), [item("a", "three")]) == {"a"}


def test_a_batch_that_was_never_submitted_leaves_no_trace(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    batch_store.release("one")
    assert batch_store.list_open("sums") == []
    assert batch_store.find_items(["q1"], "sums") == {}


def test_a_plan_that_is_written_again_changes_nothing(batch_store: BatchStore) -> None:
    for _ in range(2):  # as after a commit whose confirmation was lost
        assert batch_store.plan(batch("one"), [item("a", "one")]) == {"a"}
    assert [each.mark for each in batch_store.list_open("sums")] == ["one"]


@pytest.mark.parametrize("give_up", [BatchStore.release, BatchStore.forget])
def test_a_batch_that_was_given_up_is_not_to_be_made(
    batch_store: BatchStore, give_up: Callable[[BatchStore, str], None]
) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    assert batch_store.note_attempt("one")
    give_up(batch_store, "one")
    assert not batch_store.note_attempt("one")
    assert not batch_store.note_batch_id("one", "batch_1")


def test_a_batch_is_in_doubt_from_when_its_making_is_tried_until_its_name_is_known(batch_store: BatchStore) -> None:
    batch_store.plan(replace(batch("one"), planned_at=1.0), [item("a", "one")])
    doubts = [batch_store.list_open("sums")[0].is_in_doubt]
    batch_store.note_attempt("one")
    [tried] = batch_store.list_open("sums")
    batch_store.note_batch_id("one", "batch_1")
    assert [*doubts, tried.is_in_doubt, batch_store.list_open("sums")[0].is_in_doubt] == [False, True, False]
    assert time.time() - tried.planned_at < 60


def test_an_item_that_one_dataset_gave_up_is_free_for_another(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    batch_store.settle("one", Amount(0, 0), [], [returned("a", 5, alone=True, given_up=True)])
    assert batch_store.find_items(["q1"], "sums")["a"].given_up
    assert batch_store.find_items(["q1"], "renamed") == {}
    theirs = replace(item("a", "two"), dataset="renamed")
    assert batch_store.plan(batch("two", "renamed"), [theirs]) == {"a"}
    assert batch_store.read_items("two") == [theirs]


def test_a_forgotten_batch_counts_at_its_worst_case(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    batch_store.forget("one")
    assert batch_store.list_open("sums") == []
    assert [each.amount for each in batch_store.list_ended("sums")] == [Amount(1.5, 100)]
    assert batch_store.plan(batch("two"), [item("a", "two")]) == {"a"}


def test_spending_on_direct_requests_is_recorded_once(batch_store: BatchStore) -> None:
    for usd in (0.25, 0.5):
        batch_store.note_spent(replace(batch("session"), usd=usd))
    assert [each.amount for each in batch_store.list_ended("sums")] == [Amount(0.5, 100)]


def test_a_batch_that_is_settled_twice_takes_nothing_from_the_next_one(batch_store: BatchStore) -> None:
    batch_store.plan(batch("one"), [item("a", "one")])
    back = [returned("a")]
    batch_store.settle("one", Amount(0, 0), [], back)
    batch_store.plan(batch("two"), [item("a", "two")])
    batch_store.settle("one", Amount(0, 0), ["a"], back)
    assert [each.key for each in batch_store.read_items("two")] == ["a"]


def test_ended_batches_count_until_the_run_ends(batch_store: BatchStore) -> None:
    for mark in ("one", "two", "open"):
        batch_store.plan(batch(mark), [item(mark, mark)])
    for mark in ("one", "two"):
        batch_store.settle(mark, Amount(0.25, 10), [mark], [])
    assert [each.amount for each in batch_store.list_ended("sums")] == [Amount(0.25, 10)] * 2
    batch_store.close("sums")
    assert batch_store.list_ended("sums") == []
    assert [each.mark for each in batch_store.list_open("sums")] == ["open"]


def test_another_datasets_batches_are_found_by_their_marks(batch_store: BatchStore) -> None:
    batch_store.plan(batch("theirs", "others"), [item("a", "theirs")])
    assert batch_store.list_open("sums") == []
    assert [each.mark for each in batch_store.list_open("sums", ["theirs"])] == ["theirs"]


def claim(url: str, mark: str) -> set[str]:
    with Store(url) as store:
        return BatchStore(store).plan(batch(mark), [item(f"key {number}", mark) for number in range(200)])


def test_each_key_goes_to_one_of_many_concurrent_claims(store: Store) -> None:
    marks = [f"mark {number}" for number in range(6)]
    with ThreadPoolExecutor(len(marks)) as threads:
        claimed = list(threads.map(lambda mark: claim(store.url, mark), marks))
    assert sorted(key for keys in claimed for key in keys) == sorted(f"key {number}" for number in range(200))


def test_a_batch_is_abandoned_once_its_process_has_ended() -> None:
    process = PROCESSES.Process(target=time.time)
    process.start()
    there = replace(batch("one"), owner=f"{machine_id()}:{process.pid}")
    process.join()
    assert there.is_abandoned
    assert not replace(there, owner=f"{machine_id()}:{os.getppid()}").is_abandoned


def test_a_process_of_another_container_is_not_looked_for_here() -> None:
    place, _, _ = name_process().rpartition(":")
    host, *numbers = place.split("/")
    assert host == socket.gethostname()
    elsewhere = "/".join([host, *(f"{part}0" for part in numbers)])
    there = replace(batch("one"), owner=f"{elsewhere}:{2**22 + 1}")  # a process id that does not exist here
    assert there.is_abandoned == (not numbers)


def test_a_batch_of_another_machine_is_abandoned_after_a_while() -> None:
    there = replace(batch("one"), owner="elsewhere:1")
    assert not there.is_abandoned
    assert replace(there, planned_at=time.time() - LEASE_S - 1).is_abandoned
