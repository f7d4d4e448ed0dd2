"""Shards: a version is the same however its trees are divided among them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from malt.datasets.manifest import Manifest
from malt.datasets.pages.sample import KEPT
from malt.datasets.publish.shard import make_shard
from malt.datasets.publish.writer import VersionWriter
from malt.questions.screening import Screening
from tests.published import PROVENANCE, mixed_tree, spec_of
from tests.strategies import incomplete_tree_of, tree_of, valued

TREES = [
    *(mixed_tree(f"mixed-{number}") for number in range(3)),
    valued(incomplete_tree_of("failed"), {}),
    *(valued(tree_of(f"right-{number}"), [1] * 27) for number in range(3)),
]


def put_together(folder: Path, *cuts: int) -> tuple[Manifest, list[bytes]]:
    """Write the trees in shards cut at these places; return the manifest, without sizes and digests of whole files,
    and the trees in the report.
    """
    with VersionWriter(spec_of(), PROVENANCE, folder) as writer:
        for start, end in pairwise([0, *cuts, len(TREES)]):
            writer.add(make_shard(TREES[start:end], spec_of(), Screening(), writer.stats.sample.bar))
        files = {path: entry.model_copy(update={"sha256": "", "bytes": 0}) for path, entry in writer.finish().items()}
        return writer.manifest(files, 1, None), writer.stats.sample.chosen


@pytest.mark.parametrize("cuts", [(1,), (3,), (4,), (2, 5), (1, 2, 3, 4, 5, 6)], ids=str)
def test_a_version_does_not_depend_on_how_its_trees_are_cut(tmp_path: Path, cuts: Sequence[int]) -> None:
    assert put_together(tmp_path, *cuts) == put_together(tmp_path)


def test_a_tree_that_has_no_place_in_the_report_is_not_drawn() -> None:
    trees = [valued(tree_of(f"q{number}", (1, 1, 1)), [1]) for number in range(2 * KEPT)]
    whole = make_shard(trees, spec_of(), Screening()).stats.sample
    first = make_shard(trees[:KEPT], spec_of(), Screening()).stats.sample
    rest = make_shard(trees[KEPT:], spec_of(), Screening(), first.bar).stats.sample
    assert 0 < len(rest.chosen) < KEPT
    first.merge(rest)
    assert first.chosen == whole.chosen
