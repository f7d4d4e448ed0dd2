"""Adapters in the user's own server: it must answer as the trained adapter does, or it is not used."""

import json
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.roles import PLAYERS
from malt.config.train import TrainSpec
from malt.training.base import find_base, unpack
from tests.training.conftest import Trained

pytest.importorskip("trl", reason="the extra `train` is not installed")

from tests.lora_server import BASE, LoraServer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def base(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(find_base(spec.base, tmp_path_factory.mktemp("bases")))


def test_adapters_are_loaded_once_under_names_with_their_digest_and_proved(
    trained: Trained, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = trained.models
    command = ["serve-adapters", str(models.path), "--json", "--to"]
    with LoraServer(base) as server:
        assert exit_code([*command, f"{server.address}/v1"]) == 0
        first = json.loads(capsys.readouterr().out)["adapters"]
        assert exit_code([*command, f"{server.address}/v1"]) == 0
        again = json.loads(capsys.readouterr().out)["adapters"]
    names = [models.adapter_name(role) for role in PLAYERS]
    assert [proof["name"] for proof in first] == names == server.loaded
    assert all(models.role(role).adapter_sha256[:12] in name for role, name in zip(PLAYERS, names, strict=True))
    assert [proof["loaded"] for proof in first + again] == [True] * 3 + [False] * 3
    assert [load["lora_path"] for load in server.loads] == [str(models.path / role / "adapter") for role in PLAYERS]
    assert all(proof["difference"] <= 2 * proof["noise"] < proof["effect"] / 2 for proof in first + again)


@pytest.mark.parametrize(
    ("fault", "told", "left"),
    [
        ("base", "the base answers in its place", 0),
        ("first", "another adapter answers, or one of other weights", 1),
        ("other", f"'{BASE}' is not the base that the adapters were trained on", 0),
        ("refuses", "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", 0),
        ("mute", "answered without log-probabilities", 0),
    ],
)
def test_an_adapter_that_answers_otherwise_than_trained_is_refused_and_unloaded(
    trained: Trained, base: Path, fault: str, told: str, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with LoraServer(base, fault) as server:
        assert exit_code(["serve-adapters", str(trained.models.path), "--to", f"{server.address}/v1"]) == 2
    assert told in capsys.readouterr().err
    assert len(server.loaded) == left
