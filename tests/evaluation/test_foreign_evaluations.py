"""Untrusted evaluations: whatever their files contain, every command shows it or refuses it in one line."""

import shutil
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.evaluation.evaluate import evaluate
from malt.llm.client.session import close_sessions
from tests.evaluation.planted import planted_spec
from tests.hostile import find_bad
from tests.providers import ScriptedProvider

SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'
COMMANDS = {
    "show": ["show", "{theirs}"],
    "show --json": ["show", "{theirs}", "--json"],
    "show a question": ["show", "{theirs}", "sum-103"],
    "verify": ["verify", "{theirs}"],
    "diff": ["diff", "{theirs}", "evaluations/planted"],
    "diff --json": ["diff", "evaluations/planted", "{theirs}", "--json"],
    "report": ["report", "{theirs}"],
    "report --out": ["report", "{theirs}", "--out", "{here}/report.html"],
    "push": ["push", "{theirs}", "{here}/pushed"],
    "explain": ["explain", "{theirs}", "sum-103"],
    "evaluations": ["evaluations"],
    "evaluations --json": ["evaluations", "--json"],
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with a genuine version."""
    folder = tmp_path_factory.mktemp("evaluated")
    with ScriptedProvider() as provider, pytest.MonkeyPatch.context() as environment:
        environment.setenv("MALT_DATA_DIR", str(folder / "data"))
        environment.setenv("TEST_KEY", "key")
        evaluate(planted_spec(folder, provider, SYSTEMS, questions=4))
        close_sessions()
    return folder / "data"


@pytest.fixture
def theirs(evaluated: Path, tmp_path: Path) -> Path:
    """Folder of a copied version, beside the genuine one."""
    shutil.copytree(evaluated, tmp_path / "data", symlinks=True)
    ours = tmp_path / "data/evaluations/planted"
    shutil.copytree(ours, ours.parent / "theirs")
    return Path(shutil.copytree(ours / "v1", tmp_path / "theirs" / "v1"))


@pytest.mark.parametrize("file", ["manifest.json", "summary.json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_or_refuses_hostile_files(
    name: str, file: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str]) -> tuple[int, str, str]:
        code = exit_code([part.format(theirs=theirs, here=tmp_path) for part in command])
        return code, *capsys.readouterr()

    around = set(tmp_path.parent.iterdir())
    listed = tmp_path / "data" / "evaluations" / "theirs" / "v1"
    number = [*COMMANDS].index(name)
    assert [*find_bad(COMMANDS[name], number, [theirs / file, listed / file], run)] == []
    assert set(tmp_path.parent.iterdir()) == around


@pytest.mark.parametrize("spoiled", [b"", b"PAR1" + b"\0" * 100 + b"PAR1", b"\x80\x04\x95"])
@pytest.mark.parametrize("name", COMMANDS)
def test_answers_that_are_no_parquet_file_are_refused_or_not_needed(
    name: str, spoiled: bytes, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (theirs / "answers.parquet").write_bytes(spoiled)
    assert exit_code([part.format(theirs=theirs, here=tmp_path) for part in COMMANDS[name]]) in (0, 1, 2)
    assert "not expected" not in capsys.readouterr().err
