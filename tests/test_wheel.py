"""The wheel in an environment with its requirements only: no Prefect, no flows, no checkout."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from malt.datasets.check.verify import verify
from malt.datasets.version.dataset_version import open_version
from tests.configs import QUESTIONS, write_config
from tests.providers import ScriptedProvider

NOT_RECORDED = (
    "this run is not recorded in Prefect: that needs Prefect (pip install 'malt-trees[prefect]') and a checkout of the "
    "project"
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the wheel, and links to the packages that its metadata requires."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    [wheel] = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    [built] = distributions(path=[str(packages)])
    for required in sorted(closure(built)):
        link(distribution(required), packages)
    return folder / "env" / "bin" / "python"


def closure(built: Distribution) -> set[str]:
    """Return all transitive requirements of a distribution without extras."""
    found: set[tuple[str, str]] = set()
    left = list(required_by(built, ""))
    while left:
        needed = left.pop()
        if needed not in found:
            found.add(needed)
            left += required_by(distribution(needed[0]), needed[1])
    return {name for name, _ in found}


def required_by(installed: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    """Yield a distribution's requirements, each without an extra and with each requested one."""
    for requirement in map(Requirement, installed.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name.lower(), each) for each in ("", *requirement.extras))


def link(installed: Distribution, packages: Path) -> None:
    """Link the top-level folders of a distribution's files."""
    tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(installed.locate_file(top))))


def malt(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "-c", "import malt.cli.main; malt.cli.main.main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=python.parent)


def test_the_environment_has_no_prefect(python: Path) -> None:
    found = subprocess.run([str(python), "-I", "-c", "import prefect"], capture_output=True, text=True, check=False)
    assert "No module named 'prefect'" in found.stderr


def test_a_run_works_without_prefect_and_says_so_and_an_assembly_sends_no_request(
    python: Path, tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "key")
    config = write_config(tmp_path, provider)
    ran = malt(python, "run", config, "--json")
    assert ran.returncode == 0, ran.stderr
    assert NOT_RECORDED in ran.stderr.splitlines()
    summary = json.loads(ran.stdout)
    assert (summary["requests"], summary["complete"]) == (13 * QUESTIONS, QUESTIONS)
    assert verify(open_version(summary["path"])) == []
    assembled = json.loads(malt(python, "assemble", config, "--json").stdout)
    assert provider.request_count == 13 * QUESTIONS
    assert assembled["content_sha256"] == summary["content_sha256"]


def test_a_task_runner_of_prefect_s_is_refused(python: Path, tmp_path: Path, provider: ScriptedProvider) -> None:
    ran = malt(python, "run", write_config(tmp_path, provider), "-s", "run.task_runner=processes")
    assert ran.returncode == 2
    assert "run.task_runner = 'processes' needs Prefect" in ran.stderr
    assert provider.request_count == 0


@pytest.mark.parametrize("command", [["--help"], ["doctor", "--help"], ["up", "--help"], ["datasets"]])
def test_commands_start_without_optional_packages(python: Path, command: list[str]) -> None:
    assert os.environ["MALT_DATA_DIR"]
    ran = malt(python, *command)
    assert (ran.returncode, ran.stderr) == (0, "")
