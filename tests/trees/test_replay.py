"""Trees out of the store alone: the same in other processes as here, in order, and whose fault a failure is."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import Inputs
from malt.errors import StoreError
from malt.trees.replay import MANY, Source, Window, assess_window, made_of_each
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
def inputs(spec: RunSpec) -> Inputs:
    """The questions, once everything about them was asked that can be had."""
    return asked_directly(spec)


def source_of(inputs: Inputs, spec: RunSpec) -> Source:
    return Source(spec, inputs.prompts, Settings().store)


def single(inputs: Inputs) -> Sequence[Window]:
    """A window a question."""
    return [[question] for question in inputs.questions]


def test_many_windows_give_the_trees_that_one_gives(inputs: Inputs, spec: RunSpec) -> None:
    source = source_of(inputs, spec)
    ahead = list(chain.from_iterable(made_of_each(assess_window, single(inputs), source)))
    assert ahead == assess_window(inputs.questions, source)
    assert [tree.valued.tree.complete for tree in ahead] == [place != 1 for place in range(MANY)]


def test_a_damaged_answer_is_the_store_s_fault_wherever_it_is_read(inputs: Inputs, spec: RunSpec) -> None:
    with closing(sqlite3.connect(Settings().store.removeprefix("sqlite:///"))) as store, store:
        store.execute("UPDATE samples SET response = 'half of {' WHERE role = 'refiner'")
    with pytest.raises(StoreError, match="is damaged"):
        list(made_of_each(assess_window, single(inputs), source_of(inputs, spec)))
