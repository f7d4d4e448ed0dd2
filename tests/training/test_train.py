"""Real training: TRL on a tiny model, in the same training process that users get."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from malt.config.roles import PLAYERS, Role
from malt.config.settings import Settings
from malt.config.train import SftSettings, TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import ConfigError
from malt.models.version import list_models, open_model
from malt.training.job import clear_leftovers
from malt.training.plan import plan
from malt.training.run import RoleSummary, TrainSummary, prepare, train
from tests.training.conftest import Trained

pytest.importorskip("trl", reason="the extra `train` is not installed")

LN_2 = math.log(2)


@pytest.fixture
def refiner(spec: TrainSpec) -> TrainSpec:
    """Spec that trains both stages of the refiner only."""
    return spec.model_copy(update={"generator": (), "verifier": ()})


def test_a_dataset_version_becomes_a_model_version(trained: Trained, spec: TrainSpec) -> None:
    summary = trained.summary
    assert summary.created
    assert [*summary.roles] == [*PLAYERS]
    for role in PLAYERS:
        check_stages(trained.version, role, summary.roles[role], spec)
    assert all(len(entry.samples) == 2 for entry in trained.models.manifest.roles.values())
    adapter = trained.models.path / "refiner/adapter"
    assert {path.name for path in adapter.iterdir()} >= {"adapter_model.safetensors", "tokenizer.json"}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == spec.base
    told = [event["step"] for event in trained.events if event["event"] == "step" and event["role"] == "refiner"]
    assert told == [*range(1, 7 * 2 + 1), *range(1, 7)]


def check_stages(version: DatasetVersion, role: str, summary: RoleSummary, spec: TrainSpec) -> None:
    """Check that every row was trained on or counted as lost, and that DPO starts at its reference model."""
    assert [*summary.stages] == [*getattr(spec, role)]
    for name, stage in summary.stages.items():
        assert stage.rows == len(getattr(version, name)(role)) == stage.trained + sum(stage.lost.values())
        assert len(stage.losses) == stage.steps
        assert name != "dpo" or stage.loss_first == pytest.approx(LN_2, abs=0.001)


def test_nothing_is_trained_twice(trained: Trained, spec: TrainSpec) -> None:
    again = train(trained.version, spec, tell=lambda _: pytest.fail("it trains"), settings=trained.settings)
    assert not again.created
    assert again.content_sha256 == trained.summary.content_sha256
    assert all(role.cached for role in again.roles.values())


TRAIN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from malt.config.train import TrainSpec
from malt.training.run import train
spec, told = TrainSpec.model_validate_json(sys.argv[2]), []

def tell(event):
    told.append(f"{event.get('stage')} {event['event']}")
    print(told[-1], flush=True)
    if [told[-1], str(told.count(told[-1]))] == sys.argv[3:5]:
        os.killpg(0, int(sys.argv[5]))

train(sys.argv[1], spec, tell=tell)
"""


def start_training(version: DatasetVersion, spec: TrainSpec, *stop: object) -> "subprocess.Popen[str]":
    """Train in a separate process, which prints a line for each event; `stop` are the arguments of `stop_after`."""
    command = [sys.executable, "-c", TRAIN, str(version.path), spec.model_dump_json(), *map(str, stop)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def wait_for(event: str, count: int, process: "subprocess.Popen[str]") -> None:
    """Wait until a training has printed an event so many times."""
    assert process.stdout is not None
    matching = (line for line in process.stdout if line.strip() == event)
    assert len([*islice(matching, count)]) == count


def stop_after(version: DatasetVersion, spec: TrainSpec, event: str, count: int, how: signal.Signals) -> int:
    """Let a training send a signal to itself and to its training process after so many events; return its exit code.

    It has to do so itself: on a busy machine the training would be done before another process sends the signal.
    """
    with start_training(version, spec, event, count, how.value) as process:
        process.communicate()
    return process.returncode


def check_same(gone_on: TrainSummary, trained: Trained) -> None:
    """Check that the refiner has the weights and losses of the one that was trained without interruption."""
    weights = [models.role(Role.REFINER) for models in (open_model(gone_on.path), trained.models)]
    assert weights[0].adapter_sha256 == weights[1].adapter_sha256
    assert weights[0].gguf_sha256 == weights[1].gguf_sha256
    for name, stage in trained.summary.roles["refiner"].stages.items():
        assert stage.losses == gone_on.roles["refiner"].stages[name].losses


def test_a_killed_and_resumed_training_gives_the_same_weights(
    version: DatasetVersion, refiner: TrainSpec, trained: Trained
) -> None:
    stop_after(version, refiner, "sft step", 3, signal.SIGKILL)
    stop_after(version, refiner, "dpo step", 2, signal.SIGKILL)
    gone_on = train(version, refiner)
    assert [stage.checkpoints for stage in gone_on.roles["refiner"].stages.values()] == [1, 1]
    check_same(gone_on, trained)


def test_an_interrupted_training_leaves_a_checkpoint_and_the_next_call_resumes(
    version: DatasetVersion, refiner: TrainSpec, trained: Trained
) -> None:
    seldom = refiner.model_copy(update={"checkpoint_s": 10_000})
    assert stop_after(version, seldom, "sft step", 2, signal.SIGINT) == -signal.SIGINT
    assert len([*Settings().training_dir.glob("sums/refiner-*/sft/checkpoint-*/whole")]) == 1
    assert not Settings().models_dir.exists()
    gone_on = train(version, seldom)
    assert gone_on.roles["refiner"].stages["sft"].checkpoints == 1
    check_same(gone_on, trained)


def test_rows_that_would_lose_their_end_are_refused_before_anything_is_trained(
    version: DatasetVersion, refiner: TrainSpec
) -> None:
    short = refiner.model_copy(update={"sft": SftSettings(max_length=30)})
    quoted = plan(version, short, Settings())
    stage = quoted.roles["refiner"].stages["sft"]
    assert stage.refused is not None
    assert stage.trained < stage.rows == stage.trained + sum(stage.lost.values())
    with pytest.raises(ConfigError, match=r"longer than train\.sft\.max_length = 30 tokens \(the longest has [0-9]+\)"):
        train(version, short, tell=lambda event: pytest.fail(str(event)) if event["event"] == "step" else None)


def test_a_second_training_waits_for_the_first_and_gc_keeps_its_base(
    version: DatasetVersion, refiner: TrainSpec
) -> None:
    [folder] = [job.base.folder for job in prepare(version, refiner, Settings()).jobs]
    with start_training(version, refiner) as first:
        wait_for("sft step", 1, first)
        with standing_still(first):
            assert clear_leftovers(Settings(), 0, delete=True).folders == 0
            assert (folder / "config.json").exists()
            second = start_training(version, refiner)
            wait_for("None waiting", 1, second)
        told, _ = second.communicate()
        first.communicate()
    assert (first.returncode, second.returncode, told) == (0, 0, "")
    [only] = list_models(Settings().models_dir)[0]
    assert only.number == 1
    check_gc_takes_the_base(folder)


@contextmanager
def standing_still(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Suspend a training for the length of the block."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def check_gc_takes_the_base(folder: Path) -> None:
    """Check that gc removes a base that no training uses; its age counts from its last use."""
    assert clear_leftovers(Settings(), 3_600, delete=True).folders == 0
    assert clear_leftovers(Settings(), 0, delete=True).folders == 1
    assert not folder.exists()
