"""A provider's full batch queue: smaller batches where that may help, else waiting for up to a day."""

from dataclasses import replace
from pathlib import Path

import pytest

from malt.config.roles import ModelSpec
from malt.config.spec import RunSpec
from malt.llm.batch.submit import BatchSize, Queues
from malt.llm.store.batches import Batch
from malt.trees.pipeline import NOTHING_MISSING
from tests.batches import BatchProvider
from tests.batching import QUICK, batched, grown
from tests.batching import provider as provider
from tests.specs import spec_of, write_questions

MODEL = ModelSpec(model="openai/m")
OTHER = ModelSpec(model="openai/other")


@pytest.fixture
def queues() -> Queues:
    made = Queues(BatchSize(items=64))
    made.note_open([of(MODEL)])
    return made


def of(model: ModelSpec) -> Batch:
    return Batch("mark", "sums", model.model, None, None, 0.0, 0)


def test_a_batch_refused_alone_is_halved_and_then_only_one_runs_at_a_time(queues: Queues) -> None:
    assert queues.refused(MODEL, 64)
    assert queues.size_for(MODEL).items == 32
    assert queues.is_full_for(MODEL)
    queues.note_open([])
    assert not queues.is_full_for(MODEL)


def test_a_batch_refused_beside_others_of_ours_waits_for_them_and_is_not_halved(queues: Queues) -> None:
    queues.enter(MODEL)
    queues.refused(MODEL, 3)
    assert queues.size_for(MODEL).items == 64
    assert queues.is_full_for(MODEL)


def test_a_refused_remainder_makes_no_batch_smaller_than_one_that_was_accepted(queues: Queues) -> None:
    queues.took(MODEL, 40)
    assert not queues.refused(MODEL, 3)
    assert queues.size_for(MODEL).items == 64
    assert queues.refused(MODEL, 64)
    assert queues.size_for(MODEL).items == 40


def test_batches_grow_again_once_there_was_room(queues: Queues) -> None:
    sizes = []
    for items in (64, 32, 16, 8, 4, 2):
        queues.refused(MODEL, items)
    for items in (1, 4, 16, 64):
        sizes.append(queues.size_for(MODEL).items)
        queues.took(MODEL, items)
    assert sizes == [1, 4, 16, 64]


def test_each_model_has_a_queue_of_its_own(queues: Queues) -> None:
    queues.refused(MODEL, 64)
    assert queues.size_for(OTHER).items == 64
    assert not queues.is_full_for(OTHER)


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    provider.invalid = ("token_limit_exceeded", "Enqueued token limit reached for m in organization org-1.")
    return batched(spec_of(provider, write_questions(tmp_path)))


def sizes(provider: BatchProvider, model: str) -> list[int]:
    items = [provider.lines(batch) for batch in provider.batches]
    return [len(lines) for lines in items if lines[0]["body"]["model"] == model]


def test_a_rest_that_finds_the_queue_full_waits_for_the_batch_before_it(provider: BatchProvider, spec: RunSpec) -> None:
    provider.later_stages = {1: ["in_progress"] * 5 + ["completed"], 2: ["failed"], 3: ["completed"]}
    assert grown(spec, replace(QUICK, size=BatchSize(items=4)))[0] == NOTHING_MISSING
    assert sizes(provider, "verifier-model") == [4, 2, 2]
    assert sizes(provider, "refiner-model") == [4, 4, 4, 4, 2]
    assert set(provider.paid.values()) == {1}


def test_a_queue_that_others_fill_is_waited_for(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = ["failed"]
    provider.later_stages = {5: ["completed"]}
    assert grown(spec)[0] == NOTHING_MISSING
    assert sizes(provider, "generator-model") == [2, 1, 1, 1, 1, 1, 1]


def test_a_run_with_wait_switched_off_does_not_wait_for_a_full_queue(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = ["failed"]
    waits = grown(batched(spec, wait=False))[0].waits or ""
    assert "queue is full (token_limit_exceeded)" in waits
    assert sizes(provider, "generator-model") == [2, 1]
    provider.stages = ["completed"]
    assert grown(spec, run="two")[0] == NOTHING_MISSING


def test_a_queue_that_stays_full_for_too_long_stops_the_run(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = ["failed"]
    assert "run again later" in (grown(spec, replace(QUICK, full_for_s=0.0))[0].stopped or "")
