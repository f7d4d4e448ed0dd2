"""Runs in batch mode, in this process or in one that the test kills."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from malt.config.spec import RunSpec
from malt.engine.batch_mode import Rhythm, ask_in_batches
from malt.engine.fill import fill
from malt.engine.job import Job, read_job
from malt.engine.run import Filled, Run
from malt.llm.rate_limit.policy import Policy
from tests.batches import BatchProvider
from tests.specs import spec_of, write_questions

HASTY = Policy(backoff_s=0.01, down_after_s=0.1, never_up_after_s=0.1, limited_after_s=0.1)
QUICK = Rhythm(first_look_s=0.01, longest_s=0.05)
IMPATIENT = replace(QUICK, patience=HASTY)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    """Provider with a batch API, and its API key in the environment."""
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    with BatchProvider() as server:
        yield server


@pytest.fixture
def spec(provider: BatchProvider, tmp_path: Path) -> RunSpec:
    return batched(spec_of(provider, write_questions(tmp_path)))


def batched(spec: RunSpec, **options: object) -> RunSpec:
    return spec.model_copy(update={"run": spec.run.model_copy(update={"mode": "batch", **options})})


def grown(spec: RunSpec, rhythm: Rhythm = QUICK, run: str = "one") -> Filled:
    return grow_batched(read_job(spec), Run(run), rhythm)


def grow_batched(job: Job, run: Run, rhythm: Rhythm = QUICK) -> Filled:
    return asyncio.run(fill(job, run, partial(ask_in_batches, rhythm=rhythm)))


def grow_there(spec: RunSpec, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    grown(spec, run="killed")
