"""Trees out of the store alone: the same in other processes as here, in order, and whose fault a failure is."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import Job
from malt.errors import StoreError
from malt.trees.replay import MANY, Source, Window, map_items, read_trees
from tests import mishaps
from tests.asking import asked_directly
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Questions enough for windows of one to be many; the second's trees fail at their root."""
    monkeypatch.setenv("TEST_KEY", "key")
    provider.faults = mishaps.when(lambda asked: "What is 1 + 10?" in asked.prompt, mishaps.context_overflow())
    return spec_of(provider, write_questions(tmp_path, MANY), samples=2)


@pytest.fixture
def job(spec: RunSpec) -> Job:
    """The questions, once everything about them was asked that can be had."""
    return asked_directly(spec)


def source_of(job: Job, spec: RunSpec) -> Source:
    return Source(spec, job.prompts, Settings().store)


def single(job: Job) -> Sequence[Window]:
    """A window a question."""
    return [[question] for question in job.questions]


def test_many_windows_give_the_trees_that_one_gives(job: Job, spec: RunSpec) -> None:
    source = source_of(job, spec)
    ahead = list(chain.from_iterable(map_items(read_trees, single(job), source)))
    assert ahead == read_trees(job.questions, source)
    assert [tree.valued.tree.complete for tree in ahead] == [place != 1 for place in range(MANY)]


def test_a_damaged_answer_is_the_store_s_fault_wherever_it_is_read(job: Job, spec: RunSpec) -> None:
    with closing(sqlite3.connect(Settings().store.removeprefix("sqlite:///"))) as store, store:
        store.execute("UPDATE samples SET response = 'half of {' WHERE role = 'refiner'")
    with pytest.raises(StoreError, match="is damaged"):
        list(map_items(read_trees, single(job), source_of(job, spec)))
