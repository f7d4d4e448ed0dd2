"""Programs and commands shown in docs/ run unchanged on a small version."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import DatasetSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.trees.credit import OwnAnswer, ValuedTree
from tests.published import PROVENANCE, mixed_tree, publish, spec_of

DOCS = Path(__file__).parent.parent / "docs"
PROGRAMS = re.findall(r"```python\n(.*?)```", (DOCS / "how-to" / "pandas.md").read_text(), re.DOTALL)
DATASETS = (DOCS / "how-to" / "datasets.md").read_text()
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", DATASETS, re.DOTALL) for line in block.splitlines()]


def diagnosed(tree: ValuedTree) -> ValuedTree:
    """Return the same tree with a diagnosis of its generations and refinements."""
    grades = {leaf: tree.grades[leaf] for leaf in tree.grades if leaf.is_leaf}
    own = {leaf: OwnAnswer(grade.outcome, grade.answer) for leaf, grade in grades.items()}
    generations = [each for each in tree.tree.nodes if each.role is Role.GENERATOR]
    return replace(tree, diagnosis={**{each: own[min(own)] for each in generations}, **own})


@pytest.fixture
def quickstart() -> DatasetVersion:
    """Second version of `quickstart`, with one question more than the first."""
    for questions in (2, 3):
        trees = [diagnosed(mixed_tree(f"q{number}")) for number in range(questions)]
        version = publish(trees, spec_of("quickstart"), PROVENANCE, Settings().datasets_dir)
    return version


@pytest.mark.usefixtures("quickstart")
def test_every_program_of_the_walk_through_a_version_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for program in PROGRAMS:
        exec(compile(program, "pandas.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "quickstart@v2 117 nodes of 3 questions" in printed
    assert "3 questions have both right and wrong leaves" in printed


@pytest.mark.usefixtures("quickstart")
def test_every_command_about_datasets_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) > 5
    for command in COMMANDS:
        assert exit_code(shlex.split(command.removeprefix("$ malt "))) == 0, command
        assert capsys.readouterr().out.strip(), command


def test_every_key_of_the_dataset_table_is_documented() -> None:
    assert [key for key in DatasetSpec.model_fields if f"`{key}" not in DATASETS] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A broken link or anchor, or a missing public name, fails the build."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(build, cwd=DOCS.parent, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "reference" / "config" / "index.html").exists()


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS.parent / "README.md").read_text())
    assert links
    assert [link for link in links if not (DOCS.parent / link).exists()] == []
