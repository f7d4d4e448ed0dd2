"""Untrusted model versions: whatever their manifest says, every command shows it or refuses it in one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from tests.hostile import find_bad, forge
from tests.models.conftest import Publish

COMMANDS = {
    "show": ["show", "{theirs}"],
    "show --json": ["show", "{theirs}", "--json"],
    "show a role": ["show", "{theirs}", "refiner"],
    "verify": ["verify", "{theirs}"],
    "explain": ["explain", "{theirs}", "refiner"],
    "diff": ["diff", "{theirs}", "models/laptop"],
    "diff --json": ["diff", "models/laptop", "{theirs}", "--json"],
    "report": ["report", "{theirs}"],
    "report --out": ["report", "{theirs}", "--out", "{here}/report.html"],
    "push": ["push", "{theirs}", "{here}/pushed"],
    "models": ["models"],
    "models --json": ["models", "theirs", "--json"],
    "plan": ["plan", "{here}/config.toml"],
}
PLAYED = """name = "played"
prompts = "math"
[questions]
source = "q.jsonl"
[roles]
generator.model = "theirs@v1"
verifier.model = "embedded"
refiner.model = "embedded"
[evaluator]
kind = "number"
"""


@pytest.fixture
def theirs(publish: Publish, tmp_path: Path) -> Path:
    """Folder of a copied model version, beside a config in which it plays a role."""
    publish()
    (tmp_path / "config.toml").write_text(PLAYED)
    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1?", "ground_truth": "2"}\n')
    return publish("two", name="theirs").path


@pytest.fixture
def run(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def ran(command: list[str]) -> tuple[int, str, str]:
        code = exit_code([part.format(theirs=theirs, here=tmp_path) for part in command])
        return code, *capsys.readouterr()

    return ran


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_or_refuses_a_hostile_manifest(
    name: str, theirs: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    around = set(tmp_path.parent.iterdir())
    number = [*COMMANDS].index(name)
    assert [*find_bad(COMMANDS[name], number, [theirs / "manifest.json"], run)] == []
    assert set(tmp_path.parent.iterdir()) == around


class Planted:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (os.environ["PLANTED"],)


def replace_by_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Planted()))


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def add_code(path: Path) -> None:
    (path.parent / "modeling_evil.py").write_text('import os; os.mkdir(os.environ["PLANTED"])')
    (path.parent / "adapter_config.json").write_text(
        json.dumps({"r": 16, "auto_map": {"AutoModel": "modeling_evil.Model"}, "base_model_name_or_path": "/etc"})
    )


@pytest.mark.parametrize("damage", [replace_by_pickle, replace_by_link, replace_by_pipe, add_code])
@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "model.gguf"])
def test_no_command_runs_code_or_follows_a_link_in_place_of_weights(
    theirs: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]], file: str,
    damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    damage(theirs / "generator" / file)
    for command in COMMANDS.values():
        code, out, err = run(command)
        assert code in (0, 1, 2), err
        assert "not expected" not in err
        assert "root:" not in out + err
    assert not (tmp_path / "planted").exists()
    assert not [path for path in (tmp_path / "pushed").rglob("*") if path.is_file() and b"root:" in path.read_bytes()]


def test_a_name_out_of_the_shelf_removes_and_writes_nothing(
    theirs: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    copied = Path(shutil.copytree(theirs, tmp_path / "v1"))
    whole = json.loads((copied / "manifest.json").read_bytes())
    for name in ("../../escaped", "/escaped", "..", "a/b", ""):
        forge(copied / "manifest.json", {**whole, "name": name})
        for command in (["push", str(copied), "{here}/pushed"], ["rm", str(copied)]):
            assert run(command)[0] == 2
    assert not (tmp_path / "pushed").exists()
    assert copied.exists()
