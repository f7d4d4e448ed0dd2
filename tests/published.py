"""Small published dataset versions for tests."""

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from malt.config.roles import PLAYERS, Roles
from malt.config.spec import RunSpec
from malt.datasets.publish.shard import Shard, make_shard
from malt.datasets.publish.writer import Provenance, VersionWriter
from malt.datasets.stats.counts import UsageCount
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.trees.credit import ValuedTree
from malt.trees.tree import Tree
from tests.strategies import tree_of, valued

PROVENANCE = Provenance({"verifier/user.md": "0" * 64}, created_at=datetime(2026, 1, 2, tzinfo=UTC))

MIXED = [1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0, None, 1, 0]
"""Rewards that make right and wrong nodes at every level, and one leaf unknown."""


def spec_of(name: str = "arith", /, **dataset: bool | float | str) -> RunSpec:
    """Return a spec with a judge, these keys of `[dataset]`, and defaults for all others."""
    declared = {
        "name": name,
        "questions": {"source": "questions.jsonl"},
        "evaluator": {"kind": "llm", "model": "embedded"},
    }
    return RunSpec.model_validate({**declared, "dataset": dataset})


def asking_for(spec: RunSpec, tree: Tree) -> RunSpec:
    """Return the spec with the numbers of samples that this tree has."""
    samples = (step + 1 for step in max(tree.nodes))
    roles = {
        role: spec.roles[role].model_copy(update={"samples": count})
        for role, count in zip(PLAYERS, samples, strict=True)
    }
    return spec.model_copy(update={"roles": Roles(**roles)})


def mixed_tree(question_id: str) -> ValuedTree:
    """Return a tree that yields rows of every kind."""
    return valued(tree_of(question_id), MIXED)


def publish(
    trees: Iterable[ValuedTree],
    spec: RunSpec,
    provenance: Provenance,
    datasets_dir: Path,
    judge: UsageCount | None = None,
) -> DatasetVersion:
    """Publish trees; `judge` is the usage of grading them."""
    with VersionWriter(spec, provenance, datasets_dir / spec.name) as writer:
        for valued_tree in trees:
            writer.add(make_shard([valued_tree], spec, provenance.screening))
        writer.stats.judge = judge
        return writer.publish()


def mixed_shard(question_id: str) -> Shard:
    """Return a mixed tree's shard of a version."""
    return make_shard([mixed_tree(question_id)], spec_of(), PROVENANCE.screening)


def publish_small(datasets_dir: Path, question_id: str) -> DatasetVersion:
    """Publish a tree of four nodes."""
    tree = tree_of(question_id, (1, 1, 2))
    return publish([valued(tree, [1, 0])], asking_for(spec_of(), tree), PROVENANCE, datasets_dir)


def publish_questions(question_ids: Iterable[str], datasets_dir: Path, name: str = "arith") -> DatasetVersion:
    """Publish a mixed tree for each question."""
    return publish((mixed_tree(each) for each in question_ids), spec_of(name), PROVENANCE, datasets_dir)


def publish_two_datasets(datasets_dir: Path) -> Path:
    """Publish `arith` in two versions, `logic` in one."""
    publish_questions(["q1"], datasets_dir, "arith")
    publish_questions(["q1", "q2"], datasets_dir, "arith")
    publish_questions(["q1"], datasets_dir, "logic")
    return datasets_dir


def copied(published: Path, datasets_dir: Path) -> DatasetVersion:
    """Copy datasets for a test that changes them; return `arith`'s newest version."""
    shutil.copytree(published, datasets_dir, symlinks=True, dirs_exist_ok=True)
    return open_version("arith", datasets_dir)
