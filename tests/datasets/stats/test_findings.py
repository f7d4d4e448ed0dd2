"""Findings: ungraded and useless datasets carry a warning, and `latest` skips versions whose grading failed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from malt.config.spec import CreditSpec
from malt.datasets.check.verify import verify
from malt.datasets.publish.removal import remove_version
from malt.datasets.stats.figures import describe_diagnostics
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.datasets.version.folders import linked_numbers
from malt.errors import VersionError
from malt.grading.grades import Grade, Outcome
from malt.llm.request import FinishReason
from malt.trees.credit import OwnAnswer, ValuedTree, value_tree
from malt.trees.tree import Address
from tests.published import MIXED, PROVENANCE, asking_for, mixed_tree, publish, spec_of
from tests.strategies import saying, tree_of, valued


def failing(tree: ValuedTree, reasons: list[str]) -> ValuedTree:
    """Return the same tree, with the grading of its first leaves failed for these reasons."""
    leaves = [leaf.address for leaf in tree.tree.leaves][: len(reasons)]
    failed = {
        leaf: Grade(Outcome.UNKNOWN, None, "python", None, reason) for leaf, reason in zip(leaves, reasons, strict=True)
    }
    return value_tree(tree.tree, {**tree.grades, **failed}, CreditSpec())


def publish_tree(tree: ValuedTree, folder: Path, max_unknown: float = 0.2) -> DatasetVersion:
    spec = asking_for(spec_of(), tree.tree).model_copy(update={"credit": CreditSpec(max_unknown=max_unknown)})
    return publish([tree], spec, PROVENANCE, folder)


def small(rewards: list[float], *, texts: dict[str, str] | None = None) -> ValuedTree:
    tree = tree_of("q1", (1, 2, 2))
    return valued(saying(tree, {"0.0": "Verdict: correct", **(texts or {})}), rewards)


def test_unknown_grades_are_counted_by_reason_with_quotations_left_out(tmp_path: Path) -> None:
    tree = failing(mixed_tree("q1"), ["python: raised ValueError('a')", "python: raised ValueError('b')", "timed out"])
    version = publish_tree(tree, tmp_path)
    unknown = version.manifest.diagnostics.unknown
    assert unknown["python: raised ValueError(…)"] == 2
    assert unknown["timed out"] == 1
    assert "python: raised ValueError(…) (2)" in dict(describe_diagnostics(version.manifest.diagnostics))["unknown"]


def test_a_version_whose_grading_failed_does_not_become_latest(tmp_path: Path) -> None:
    good = publish_tree(mixed_tree("q1"), tmp_path)
    bad = publish_tree(failing(mixed_tree("q1"), ["it returned None"] * 10), tmp_path)
    assert good.manifest.withheld is None
    assert str(bad.manifest.withheld).startswith("the grade of 11 of 27 leaves is unknown")
    assert "it returned None" in str(bad.manifest.withheld)
    assert bad.manifest.suspicions[0] == bad.manifest.withheld
    assert linked_numbers(tmp_path / "arith") == {"latest": 1}
    assert open_version("arith", tmp_path).number == 1
    assert open_version("arith@v2", tmp_path).number == 2
    assert verify(bad) == []


def test_the_next_good_version_becomes_latest_and_the_withheld_one_may_go(tmp_path: Path) -> None:
    publish_tree(mixed_tree("q1"), tmp_path)
    publish_tree(failing(mixed_tree("q1"), ["it returned None"] * 10), tmp_path)
    with pytest.raises(VersionError, match="its number must not be used again"):
        remove_version("arith@v2", tmp_path)
    with pytest.raises(VersionError, match="`latest` names it"):
        remove_version("arith@v1", tmp_path)
    assert publish_tree(mixed_tree("q2"), tmp_path).number == 3
    assert linked_numbers(tmp_path / "arith") == {"latest": 3}
    remove_version("arith@v2", tmp_path)


def test_without_any_good_version_the_name_alone_opens_none(tmp_path: Path) -> None:
    publish_tree(failing(mixed_tree("q1"), ["it returned None"] * 27), tmp_path)
    assert linked_numbers(tmp_path / "arith") == {}
    with pytest.raises(VersionError, match=r"has no latest version: the grade of 27 of 27 .* name it: arith@v1"):
        open_version("arith", tmp_path)


def test_the_share_that_may_be_unknown_is_declared(tmp_path: Path) -> None:
    assert (
        publish_tree(failing(mixed_tree("q1"), ["timed out"] * 27), tmp_path, max_unknown=1).manifest.withheld is None
    )
    assert publish_tree(
        mixed_tree("q2"), tmp_path, max_unknown=0
    ).manifest.withheld  # one leaf of MIXED has an unknown grade
    assert MIXED.count(None) == 1


def cut(role_depth: int) -> ValuedTree:
    addresses = [address for address in tree_of("q1", (2, 2, 2)).nodes if len(address) == role_depth]
    return valued(tree_of("q1", (2, 2, 2), dict.fromkeys(addresses, FinishReason.LENGTH)), [1, 0] * 4)


SUSPICIOUS: dict[str, tuple[Callable[[], ValuedTree], str]] = {
    "all right": (lambda: small([1, 1, 1, 1]), "every graded leaf is right"),
    "all wrong": (lambda: small([0, 0, 0, 0]), "no graded leaf is right"),
    "no pair": (
        lambda: small([1, 0, 1, 0], texts=dict.fromkeys(leaves(), "It is 4.")),
        "left out every candidate",
    ),
    "no verdict": (lambda: small([1, 0, 1, 0], texts={"0.0": "Good.", "0.1": "Well."}), "critiques states a verdict"),
    "truncated": (lambda: cut(1), "of the generator's texts"),
}


def leaves() -> list[str]:
    return [str(Address((0, critique, refinement))) for critique in (0, 1) for refinement in (0, 1)]


def with_diagnosis(tree: ValuedTree) -> ValuedTree:
    """Return the same tree with every generation and leaf diagnosed as it was graded."""
    known = {address: OwnAnswer(grade.outcome, grade.answer) for address, grade in tree.grades.items()}
    first = {
        Address((each,)): OwnAnswer(Outcome.WRONG, "5") for each in range(2) if Address((each,)) in tree.tree.nodes
    }
    return replace(tree, diagnosis={**known, **first})


@pytest.mark.parametrize("kind", SUSPICIOUS)
def test_a_suspicious_dataset_says_why_in_manifest_card_and_report(kind: str, tmp_path: Path) -> None:
    make, sentence = SUSPICIOUS[kind]
    version = publish_tree(with_diagnosis(make()), tmp_path)
    assert [sentence in each for each in version.manifest.suspicions].count(True) == 1
    assert version.manifest.withheld is None
    assert "**Suspicious:**" in (version.path / "README.md").read_text()
    assert "<b>Suspicious:</b>" in (version.path / "report.html").read_text()


def test_a_dataset_whose_siblings_all_agree_says_that_it_has_no_pair(tmp_path: Path) -> None:
    trees = [valued(tree_of(name, (1, 1, 1)), [reward]) for name, reward in (("q1", 1), ("q2", 0))]
    version = publish(trees, asking_for(spec_of(), trees[0].tree), PROVENANCE, tmp_path)
    assert version.manifest.suspicions == ("no preference pair: no two siblings have different labels",)


def test_an_ordinary_dataset_is_not_suspicious(tmp_path: Path) -> None:
    version = publish_tree(with_diagnosis(saying_verdicts()), tmp_path)
    assert version.manifest.suspicions == ()
    assert "Suspicious" not in (version.path / "README.md").read_text() + (version.path / "report.html").read_text()


def saying_verdicts() -> ValuedTree:
    tree = tree_of("q1", (3, 3, 3))
    critiques = {str(address): "Verdict: wrong" for address in tree.nodes if len(address) == 2}
    return valued(saying(tree, critiques), MIXED)
