"""What docs/ shows is run as it stands, one program after another, on a small version."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from malt.datasets.publishing import publish
from malt.settings import Settings
from malt.spec import Role
from malt.trees.credit import OwnAnswer, ValuedTree
from tests.published import PROVENANCE, mixed_tree, spec_of

EXPLORE = (Path(__file__).parent.parent / "docs" / "explore.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", EXPLORE, re.DOTALL)


def diagnosed(tree: ValuedTree) -> ValuedTree:
    """The same tree, with what its generations and refinements themselves answer."""
    grades = {leaf: tree.grades[leaf] for leaf in tree.grades if leaf.is_leaf}
    own = {leaf: OwnAnswer(grade.outcome, grade.answer) for leaf, grade in grades.items()}
    generations = [each for each in tree.tree.nodes if each.role is Role.GENERATOR]
    return replace(tree, diagnosis={**{each: own[min(own)] for each in generations}, **own})


def test_every_program_of_the_walk_through_a_version_runs(capsys: pytest.CaptureFixture[str]) -> None:
    trees = [diagnosed(mixed_tree(f"q{number}")) for number in range(3)]
    publish(trees, spec_of("quickstart"), PROVENANCE, Settings().datasets_dir)
    names: dict[str, object] = {}
    for program in PROGRAMS:
        exec(compile(program, "explore.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "quickstart@v1 117 nodes of 3 questions" in printed
    assert "3 questions have both right and wrong leaves" in printed
