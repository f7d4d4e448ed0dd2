"""Bases for training: a GGUF file, a folder or a model on the Hub, with an adapter or with all weights."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from malt.cli.main import exit_code
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import ConfigError, VersionError
from malt.models import gguf
from malt.models.version import open_model
from malt.training.base import find_base, unpack
from malt.training.plan import plan
from malt.training.run import train
from malt.training.worker import replace_weights
from tests.hub import OWNER, Blob, Hub, Repository
from tests.hub import hub as hub

pytest.importorskip("trl", reason="the extra `train` is not installed")


@pytest.fixture(scope="module")
def folder(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model in transformers' format."""
    return unpack(find_base(spec.base, tmp_path_factory.mktemp("bases")))


def test_all_weights_of_a_folders_model_are_trained(version: DatasetVersion, spec: TrainSpec, folder: Path) -> None:
    whole = {"base": str(folder), "adapter": "full", "generator": (), "verifier": ()}
    summary = train(version, spec.model_copy(update=whole))
    assert summary.roles["refiner"].stages["dpo"].loss_first == pytest.approx(math.log(2), abs=0.001)
    trained = open_model("sums", Settings().models_dir)
    assert trained.manifest.base.sha256 == find_base(str(folder), folder).sha256
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        path.name for path in (trained.path / "refiner/model").iterdir()
    }
    with pytest.raises(VersionError, match=r"has no model\.gguf for the refiner: its base"):
        trained.weights(Role.REFINER)
    assert exit_code(["serve-adapters", str(trained.path), "--to", "http://127.0.0.1:9/v1"]) == 2


def test_whole_weights_take_the_place_of_the_bases_in_a_gguf_file(tiny: Path, folder: Path, tmp_path: Path) -> None:
    gguf.write_trained(tiny, tmp_path / "again.gguf", replace_weights(folder), "again")
    before, after = (dict(gguf.weights_in(gguf.open_gguf(path))) for path in (tiny, tmp_path / "again.gguf"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(weights.astype(np.float16), after[name]) for name, weights in before.items())


def test_a_plan_leaves_nothing_that_others_can_enter(version: DatasetVersion, spec: TrainSpec) -> None:
    before = os.umask(0)
    try:
        plan(version, spec, Settings())
    finally:
        os.umask(before)
    folders = [Settings().training_dir, *Settings().training_dir.iterdir()]
    assert len(folders) == 3
    assert [folder for folder in folders if folder.stat().st_mode & 0o077] == []


def test_a_base_that_did_not_grow_the_trees_is_named(
    version: DatasetVersion, spec: TrainSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code(["train", str(version.path), "--plan", "-s", f"train.base={spec.base}"])
    grown_by = version.spec.roles[Role.GENERATOR].model
    assert f"grown by {grown_by}, but the model to be trained is train.base = {spec.base}" in capsys.readouterr().err


def test_a_base_on_the_hub_is_fetched_once_without_code_or_pickles(hub: Hub, folder: Path, tmp_path: Path) -> None:
    there = Repository(is_private=False, kind="model")
    files = {path.name: Blob(path.read_bytes(), is_large=path.suffix == ".safetensors") for path in folder.iterdir()}
    unwanted = {"modeling_tiny.py": Blob(b"print('run')", is_large=False), "model.bin": Blob(b"pickle", is_large=False)}
    there.commit("main", files | unwanted, "initial commit")
    hub.repositories[f"{OWNER}/tiny"] = there
    found = find_base(f"{OWNER}/tiny", tmp_path)
    assert found.sha256 == find_base(str(folder), tmp_path).sha256
    assert not unwanted.keys() & {path.name for path in found.folder.iterdir()}
    fetched = hub.sent("GET")
    assert find_base(f"{OWNER}/tiny", tmp_path) == found
    assert not [path for path in hub.sent("GET")[len(fetched) :] if "/resolve/" in path]


def test_a_base_that_is_nowhere_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no local folder, and cannot be fetched from the Hub"):
        find_base(f"{OWNER}/missing", tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match=r"has no config\.json with \*\.safetensors beside it"):
        find_base(str(tmp_path / "pickled"), tmp_path)
    assert hub.sent("POST") == []


def test_without_torch_one_sentence_says_how_to_get_it(
    version: DatasetVersion,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert exit_code(["train", str(version.path), "-s", f"train.base={OWNER}/huge"]) == 2
    assert capsys.readouterr().err == (
        "error: malt train needs torch: `make train` in a clone of the project installs it\n"
    )
    assert hub.requests == []
