"""The README's commands, in order, and its Python programs run unchanged."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.loader import load_spec
from malt.datasets.version.dataset_version import open_version
from tests.homes import cache_database

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
SHOWN = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
ELSEWHERE = {"make test", "source .venv/bin/activate"}
"""Commands that are not run: the one that runs this test, and one that needs an interactive shell."""
LINKED = ("Makefile", "pyproject.toml", "constraints.txt", "flows", "tasks", "prompts")
ASKED = ("What is the capital of Japan?", "How many days are in a week?")
"""Questions of the quickstart that are asked here, with the one that the README shows; each takes seconds."""
ROW = re.compile(r"kto-refiner/\S+")
"""Id of a row that the README shows; whether its text is cut off, and so makes no row, depends on the processor."""

blocks = [match for match in SHOWN.finditer(README) if not match["before"].startswith("<!-- not run")]
commands = [
    line.removeprefix("$ ")
    for block in blocks
    if block["language"] == "console"
    for line in block["text"].splitlines()
    if line.startswith("$ ")
]
programs = [block["text"] for block in blocks if block["language"] == "python"]


def test_the_commands_take_the_config_that_init_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("question,answer\nWhat is 1 + 2?,3\n")
    [init] = re.findall(r"^malt (init \S+ \S+)", README, re.MULTILINE)
    assert exit_code([*init.split(), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["config"]
    assert set(re.findall(r"^malt (?:plan|run|evaluate|improve) (\S+)", README, re.MULTILINE)) == {written}
    assert re.findall(r"^malt train (\S+)", README, re.MULTILINE) == [load_spec(Path(written)).name]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of this checkout, set up, with a shorter quickstart."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in LINKED:
        (folder / name).symlink_to(PROJECT / name)
    shutil.copytree(PROJECT / "configs", folder / "configs")
    questions = folder / "configs" / "quickstart.jsonl"
    rows = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join(row for row in rows if any(question in row for question in ASKED)))
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / "ready").touch()
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a user's shell: the project's commands on PATH, a new home, one core for the embedded model."""
    scripts = str(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALT_", "PREFECT_"))}
    home = tmp_path_factory.mktemp("home")
    cache_database(home)
    own = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "MALT_EMBEDDED_THREADS": "1"}
    return {**kept, **own, "PATH": f"{scripts}{os.pathsep}{kept['PATH']}"}


@pytest.fixture(scope="module")
def runs(checkout: Path, environment: dict[str, str]) -> dict[str, subprocess.CompletedProcess[str]]:
    """Results of all commands, run one after another."""

    def run(command: str) -> subprocess.CompletedProcess[str]:
        if ROW.search(command):
            command = ROW.sub(row_that_is_there(checkout), command)
        return subprocess.run(command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True)

    return {command: run(command) for command in commands if command not in ELSEWHERE}


def row_that_is_there(checkout: Path) -> str:
    version = open_version(str(checkout / "data" / "datasets" / "quickstart" / "v1"))
    return str(version.kto("refiner")["row_id"].iloc[0])


@pytest.mark.parametrize("command", [command for command in commands if command not in ELSEWHERE])
def test_every_command_in_the_readme_runs(command: str, runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert runs[command].returncode == 0, runs[command].stderr
    assert runs[command].stdout.strip()


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("program", programs, ids=[f"program {i}" for i in range(len(programs))])
def test_every_program_in_the_readme_runs(program: str, checkout: Path, environment: dict[str, str]) -> None:
    python = [sys.executable, "-c", program]
    done = subprocess.run(python, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
