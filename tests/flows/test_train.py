"""`train`: one task run for each role; a trained role is identified by its inputs."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.train import train
from malt.config.settings import Settings
from malt.llm.client.run_lock import hold_run_lock
from malt.training.run import TrainSummary
from tests.published import PROVENANCE, mixed_tree, publish
from tests.training.conftest import spec_for, write_tiny

WORKER = "malt.training.worker"
HANGS_S = 600

pytest.importorskip("trl", reason="the extra `train` is not installed")


def test_the_flow_trains_a_role_a_task_and_nothing_twice(
    api_url: str, tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    from malt.config.spec import RunSpec

    declared = {"name": "sums", "questions": {"source": "questions.jsonl"}}
    chosen = spec_for(write_tiny(tmp_path)).model_copy(update={"verifier": ("sft",), "refiner": ()})
    spec = RunSpec.model_validate({**declared, "train": chosen.model_dump(mode="json")})
    publish(map(mixed_tree, ["q0", "q1"]), spec, PROVENANCE, settings.datasets_dir)
    asyncio.run(asyncio.wait_for(cancel_once_it_trains(settings), HANGS_S))
    first: TrainSummary = asyncio.run(train("sums"))
    assert {role: entry.cached for role, entry in first.roles.items()} == {"generator": False, "verifier": False}
    again = asyncio.run(asyncio.wait_for(train_while_another_publishes(settings, caplog), HANGS_S))
    assert (again.content_sha256, again.created) == (first.content_sha256, False)
    assert all(role.cached for role in again.roles.values())
    shutil.rmtree(settings.models_dir)  # the files are gone; Prefect's cache still has the roles
    assert asyncio.run(train("sums")).content_sha256 == first.content_sha256


async def cancel_once_it_trains(settings: Settings) -> None:
    """Cancel a training as *Cancel* and *Suspend* do; its process ends too."""
    training = asyncio.create_task(train("sums"))
    while not (started := find_workers()):
        assert not training.done()
        await asyncio.sleep(0.05)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    while started[0].is_running():  # noqa: ASYNC110 - another process tells of nothing
        await asyncio.sleep(0.05)
    assert not [*settings.training_dir.glob("*/*/done")]


def find_workers() -> list[psutil.Process]:
    """Return the training processes among this one's children, any of which may end meanwhile."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            found += [child] if WORKER in child.cmdline() else []
    return found


async def train_while_another_publishes(settings: Settings, caplog: pytest.LogCaptureFixture) -> TrainSummary:
    """Train while another caller holds the lock, and publishes every role before it releases the lock."""
    hidden = settings.models_dir.rename(settings.models_dir.with_name("hidden"))
    async with hold_run_lock("train-sums", settings, "the first"):
        second = asyncio.create_task(train("sums"))
        while "waiting for the first" not in caplog.text:
            assert not second.done()
            await asyncio.sleep(0.05)
        hidden.rename(settings.models_dir)
    return await second
