"""Growing in batches, in this process or in one that is killed."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.batch_mode import Rhythm, ask_in_batches
from malt.engine.job import read_inputs
from malt.llm.client.session import open_session
from malt.llm.rate_limit.policy import Policy
from malt.llm.usage import Tally
from malt.trees.pipeline import Shortfall
from tests.batches import BatchProvider

HASTY = Policy(backoff_s=0.01, down_after_s=0.1, never_up_after_s=0.1, limited_after_s=0.1)
QUICK = Rhythm(first_look_s=0.01, longest_s=0.05)
IMPATIENT = replace(QUICK, patience=HASTY)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    """A provider that has batches, and the key for it."""
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    with BatchProvider() as server:
        yield server


def batched(spec: RunSpec, **options: object) -> RunSpec:
    return spec.model_copy(update={"run": spec.run.model_copy(update={"mode": "batch", **options})})


def grown(spec: RunSpec, rhythm: Rhythm = QUICK, run: str = "one") -> tuple[Shortfall, Tally]:
    inputs, session = read_inputs(spec), open_session(Settings(), spec.limits, run=run)
    return asyncio.run(ask_in_batches(inputs.questions, spec, inputs.prompts, session, run, rhythm=rhythm))


def grow_there(spec: RunSpec, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    grown(spec, run="killed")
