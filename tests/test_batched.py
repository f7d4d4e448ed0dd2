"""A dataset made through batches is the one that direct requests make, at half the price."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from malt.batched import Rhythm, ask_in_batches
from malt.inputs import read_inputs
from malt.llm.session import session_for
from malt.llm.tally import Tally
from malt.settings import Settings
from malt.spec import RunSpec
from malt.trees.assessment import NOTHING_MISSING, Shortfall
from tests.batches import BatchProvider
from tests.specs import spec_of, write_questions

QUICK = Rhythm(first_look_s=0.01, longest_s=0.05)
PER_QUESTION = 1 + 3 + 9


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    with BatchProvider() as server:
        yield server


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    direct = spec_of(provider, write_questions(tmp_path))
    return direct.model_copy(update={"run": direct.run.model_copy(update={"mode": "batch"})})


async def grown(spec: RunSpec, rhythm: Rhythm = QUICK, run: str = "one") -> tuple[Shortfall, Tally]:
    inputs, session = read_inputs(spec), session_for(Settings(), spec.limits, run=run)
    return await ask_in_batches(inputs.questions, spec, inputs.prompts, session, run, rhythm=rhythm)


async def test_each_level_of_all_trees_is_one_batch(provider: BatchProvider, spec: RunSpec) -> None:
    shortfall, tally = await grown(spec)
    assert shortfall == NOTHING_MISSING
    assert [len(provider.lines(batch)) for batch in provider.batches] == [2, 6, 18]
    assert tally.total.requests == 2 * PER_QUESTION
    assert tally.total.completions == 2 * (3 + 9 + 27)
