"""`train`: a task run a role; what is trained is known by what it was trained from."""

import asyncio
import shutil
from pathlib import Path

import psutil
import pytest

from flows.train import train
from malt.config.settings import Settings
from malt.training.run import TrainSummary
from tests.published import PROVENANCE, mixed_tree, publish
from tests.training.conftest import spec_for, write_tiny

WORKER = "malt.training.worker"

pytest.importorskip("trl", reason="the extra `train` is not installed")


def test_the_flow_trains_a_role_a_task_and_nothing_twice(api_url: str, tmp_path: Path, settings: Settings) -> None:
    from malt.config.spec import RunSpec

    declared = {"name": "sums", "questions": {"source": "questions.jsonl"}}
    chosen = spec_for(write_tiny(tmp_path)).model_copy(update={"refiner": ()})
    spec = RunSpec.model_validate({**declared, "train": chosen.model_dump(mode="json")})
    publish(map(mixed_tree, ["q0", "q1"]), spec, PROVENANCE, settings.datasets_dir)
    asyncio.run(cancel_once_it_trains())
    first: TrainSummary = asyncio.run(train("sums"))
    assert {role: entry.cached for role, entry in first.roles.items()} == {"generator": False, "verifier": False}
    again: TrainSummary = asyncio.run(train("sums"))
    assert (again.content_sha256, again.created) == (first.content_sha256, False)
    assert all(role.cached for role in again.roles.values())
    shutil.rmtree(settings.models_dir)  # Prefect's cache still knows the roles, whose files are gone
    assert asyncio.run(train("sums")).content_sha256 == first.content_sha256


async def cancel_once_it_trains() -> None:
    """Cancel a training as *Cancel* and *Suspend* do; its process ends with it."""
    training = asyncio.create_task(train("sums"))
    while not (started := [each for each in psutil.Process().children() if WORKER in each.cmdline()]):
        assert not training.done()
        await asyncio.sleep(0.05)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert not started[0].is_running()
