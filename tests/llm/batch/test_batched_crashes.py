"""kill -9 after a call took effect at the provider and before its response: the next run pays for nothing twice."""

import os
from pathlib import Path

import pytest

from malt.config.spec import RunSpec
from malt.trees.pipeline import NOTHING_MISSING
from tests.batches import BatchProvider
from tests.batching import batched, grow_there, grown
from tests.batching import provider as provider
from tests.crashing import ended, start
from tests.mishaps import hang
from tests.postgres import postgres as postgres
from tests.specs import spec_of, write_questions

KEPT = ("TEST_KEY", "MALT_DATA_DIR", "MALT_STORE_URL")
CALLS = [("upload", 0), ("create", 0), ("look", 1), ("download", 0), ("upload", 1), ("create", 1)]


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    provider.stages = ["in_progress", "completed"]
    return batched(spec_of(provider, write_questions(tmp_path)))


def kill_as_it_takes_effect(spec: RunSpec, provider: BatchProvider, call: str, number: int) -> None:
    provider.afterwards = lambda *which: hang() if which == (call, number) else None
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    process = start(grow_there, spec, environment)
    provider.wait_until_done(call, number)
    process.kill()
    assert ended(process)


def check_nothing_is_paid_twice(provider: BatchProvider) -> None:
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 6, 18]
    assert set(provider.paid.values()) == {1}


@pytest.mark.parametrize(("call", "number"), CALLS, ids=str)
def test_killed_with_the_store_in_a_file(provider: BatchProvider, spec: RunSpec, call: str, number: int) -> None:
    kill_as_it_takes_effect(spec, provider, call, number)
    assert grown(spec)[0] == NOTHING_MISSING
    check_nothing_is_paid_twice(provider)


def test_killed_with_the_store_in_postgresql(
    provider: BatchProvider, spec: RunSpec, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALT_STORE_URL", postgres)
    kill_as_it_takes_effect(spec, provider, "create", 1)
    assert grown(spec)[0] == NOTHING_MISSING
    check_nothing_is_paid_twice(provider)


def test_two_processes_at_once_share_the_work(provider: BatchProvider, spec: RunSpec) -> None:
    provider.stages = [*["in_progress"] * 10, "completed"]
    there = start(grow_there, spec, {name: os.environ[name] for name in KEPT if name in os.environ})
    provider.wait_until_done("create", 0)
    assert grown(spec)[0] == NOTHING_MISSING
    assert not ended(there)
    assert len(provider.items) == len(set(provider.items)) == 26
    assert set(provider.paid.values()) == {1}
