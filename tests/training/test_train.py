"""Training, for real: TRL on a tiny model, in the training process that users have."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.config.train import SftSettings, TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import ConfigError
from malt.models.version import list_models, open_model
from malt.training.job import clear_leftovers
from malt.training.plan import plan
from malt.training.run import RoleSummary, TrainSummary, prepare, train

pytest.importorskip("trl", reason="the extra `train` is not installed")

LN_2 = math.log(2)


def test_a_dataset_version_becomes_a_model_version(version: DatasetVersion, spec: TrainSpec) -> None:
    events = list[dict[str, Any]]()
    summary = train(version, spec, tell=lambda event: events.append(dict(event)))
    assert summary.created
    assert [*summary.roles] == [*PLAYERS]
    for role in PLAYERS:
        check_stages(version, role, summary.roles[role], spec)
    assert all(len(entry.samples) == 2 for entry in open_model("sums").manifest.roles.values())
    adapter = open_model("sums", Settings().models_dir).path / "refiner/adapter"
    assert {path.name for path in adapter.iterdir()} >= {"adapter_model.safetensors", "tokenizer.json"}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == spec.base
    told = [event["step"] for event in events if event["event"] == "step" and event["role"] == "refiner"]
    assert told == [*range(1, 7 * 2 + 1), *range(1, 7)]
    check_nothing_is_trained_twice(version, spec, summary)


def check_stages(version: DatasetVersion, role: str, summary: RoleSummary, spec: TrainSpec) -> None:
    """Every row was trained or is lost by name; DPO begins at its reference."""
    assert [*summary.stages] == [*getattr(spec, role)]
    for name, stage in summary.stages.items():
        assert stage.rows == len(getattr(version, name)(role)) == stage.trained + sum(stage.lost.values())
        assert len(stage.losses) == stage.steps
        assert name != "dpo" or stage.loss_first == pytest.approx(LN_2, abs=0.001)


def check_nothing_is_trained_twice(version: DatasetVersion, spec: TrainSpec, summary: TrainSummary) -> None:
    again = train(version, spec, tell=lambda _: pytest.fail("a second call trains nothing"))
    assert not again.created
    assert again.content_sha256 == summary.content_sha256
    assert all(role.cached for role in again.roles.values())


TRAIN = """
import sys
from malt.config.train import TrainSpec
from malt.training.run import train
spec = TrainSpec.model_validate_json(sys.argv[2])
train(sys.argv[1], spec, tell=lambda event: print(event.get("stage"), event["event"], flush=True))
"""


def kill_after(version: DatasetVersion, spec: TrainSpec, event: str, count: int) -> None:
    """Train in a process, and kill it and the one it trains in after so many events of a kind."""
    command = [sys.executable, "-c", TRAIN, str(version.path), spec.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.strip() == event
            if seen == count:
                break
        os.killpg(process.pid, signal.SIGKILL)
    assert seen == count


def test_killed_and_gone_on_with_the_weights_are_the_same(
    version: DatasetVersion, spec: TrainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refiner = spec.model_copy(update={"generator": (), "verifier": ()})
    at_once = train(version, refiner)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "other"))
    kill_after(version, refiner, "sft step", 3)
    kill_after(version, refiner, "dpo step", 2)
    gone_on = train(version, refiner)
    assert gone_on.content_sha256 == at_once.content_sha256
    assert [stage.checkpoints for stage in gone_on.roles["refiner"].stages.values()] == [1, 1]
    for name, stage in at_once.roles["refiner"].stages.items():
        assert stage.losses == gone_on.roles["refiner"].stages[name].losses


def test_rows_that_would_lose_their_end_are_refused_before_anything_is_trained(
    version: DatasetVersion, spec: TrainSpec
) -> None:
    short = spec.model_copy(update={"sft": SftSettings(max_length=30), "generator": ()})
    quoted = plan(version, short, Settings())
    stage = quoted.roles["refiner"].stages["sft"]
    assert stage.refused is not None
    assert stage.trained < stage.rows == stage.trained + sum(stage.lost.values())
    with pytest.raises(ConfigError, match=r"longer than train\.sft\.max_length = 30 tokens \(the longest has [0-9]+\)"):
        train(version, short, tell=lambda event: pytest.fail(str(event)) if event["event"] == "step" else None)


def test_of_two_that_train_the_same_at_once_one_waits_and_takes_what_the_other_made(
    version: DatasetVersion, spec: TrainSpec
) -> None:
    refiner = spec.model_copy(update={"generator": (), "verifier": ()})
    command = [sys.executable, "-c", TRAIN, str(version.path), refiner.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert next(line for line in first.stdout if line.strip() == "sft step")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            told, _ = second.communicate()
        first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert told.split() == ["None", "waiting"]
    [only] = list_models(Settings().models_dir)[0]
    assert only.number == 1


def test_gc_leaves_an_unpacked_base_while_a_process_trains_on_it(version: DatasetVersion, spec: TrainSpec) -> None:
    refiner = spec.model_copy(update={"generator": (), "verifier": ()})
    [folder] = [job.base.folder for job in prepare(version, refiner, Settings()).jobs]
    command = [sys.executable, "-c", TRAIN, str(version.path), refiner.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert next(line for line in training.stdout if line.strip() == "sft step")
        assert clear_leftovers(Settings(), 0, delete=True).folders == 0
        assert (folder / "config.json").exists()
        training.communicate()
    assert training.returncode == 0
    assert clear_leftovers(Settings(), 3_600, delete=True).folders == 0
    assert clear_leftovers(Settings(), 0, delete=True).folders == 1
    assert not folder.exists()
