"""What the README shows is run as it stands: its commands in order, and its Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
SHOWN = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
ELSEWHERE = {"make test", "source .venv/bin/activate"}
"""The command that runs this test, and one that needs an interactive shell."""

blocks = [match for match in SHOWN.finditer(README) if not match["before"].startswith("<!-- not run")]
commands = [
    line.removeprefix("$ ")
    for block in blocks
    if block["language"] == "console"
    for line in block["text"].splitlines()
    if line.startswith("$ ")
]
programs = [block["text"] for block in blocks if block["language"] == "python"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's shell: the project's commands on the path, a data folder and a home of their own."""
    home = tmp_path_factory.mktemp("home")
    scripts = str(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALT_", "PREFECT_"))}
    data = {"MALT_DATA_DIR": str(home / "data"), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return {**kept, **data, "PATH": f"{scripts}{os.pathsep}{kept['PATH']}"}


@pytest.fixture(scope="module")
def runs(environment: dict[str, str]) -> dict[str, subprocess.CompletedProcess[str]]:
    """What came of every command, run one after the other."""
    return {
        command: subprocess.run(command, shell=True, cwd=PROJECT, env=environment, capture_output=True, text=True)
        for command in commands
        if command not in ELSEWHERE
    }


@pytest.mark.parametrize("command", [command for command in commands if command not in ELSEWHERE])
def test_every_command_in_the_readme_runs(command: str, runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert runs[command].returncode == 0, runs[command].stderr
    assert runs[command].stdout.strip()


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("program", programs, ids=[f"program {i}" for i in range(len(programs))])
def test_every_program_in_the_readme_runs(program: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(environment["MALT_DATA_DIR"])
    (tmp_path / "prompts").symlink_to(PROJECT / "prompts")
    python = [sys.executable, "-c", program]
    done = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
