"""kill -9 before every file-system change of publishing, removing and tagging, and at random moments."""

import shutil
from itertools import count
from pathlib import Path
from random import Random

import pytest

from malt.datasets.version.dataset_version import open_version
from malt.datasets.version.folders import linked_numbers, version_numbers
from tests.crashing import check_whole, killed_after, killed_before, mend, move_tag, remove
from tests.published import publish_small

SEED = 4711
MOMENTS = 50
LONGEST_S = 0.1
"""About as long as publishing takes, in seconds: some publishers are killed at work, some have just finished."""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Dataset with three versions; the first one is tagged."""
    for question_id in ("q1", "q2", "q3"):
        publish_small(tmp_path, question_id)
    move_tag(tmp_path, "paper", 1)
    return tmp_path


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".tmp-*"))


def test_a_publisher_killed_before_any_change_leaves_the_old_version_or_the_new_one(tmp_path: Path) -> None:
    publish_small(tmp_path, "old")
    for change in count(1):
        was_killed = killed_before(change, publish_small, tmp_path, "new")
        found = version_numbers(tmp_path / "arith")
        assert found in ([1], [1, 2])
        assert linked_numbers(tmp_path / "arith") in ({"latest": 1}, {"latest": found[-1]})
        if not was_killed:
            break
    assert change > 10
    assert check_whole(tmp_path) == [1, 2]
    assert linked_numbers(tmp_path / "arith") == {"latest": 2}
    assert unfinished(tmp_path / "arith") == []


def test_publishers_killed_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    random, numbers = Random(SEED), [publish_small(tmp_path, "old").number]
    for moment in range(MOMENTS):
        killed_after(random.uniform(0, LONGEST_S), publish_small, tmp_path, f"q{moment}")
        found = version_numbers(tmp_path / "arith")
        assert found in (numbers, [*numbers, numbers[-1] + 1])
        assert linked_numbers(tmp_path / "arith")["latest"] in found
        numbers = found
    newest = publish_small(tmp_path, "new").number
    assert newest == numbers[-1] + 1
    assert linked_numbers(tmp_path / "arith") == {"latest": newest}
    assert check_whole(tmp_path) == [*numbers, newest]
    assert unfinished(tmp_path / "arith") == []


def test_a_removal_killed_before_any_change_leaves_the_version_whole_or_gone(three: Path) -> None:
    for change in count(1):
        assert killed_before(change, remove, three, "arith@v2")
        if check_whole(three, 1, 3) == [1, 3]:
            break
    assert change > 1
    assert len(unfinished(three / "arith")) == 1
    assert publish_small(three, "q4").number == 4
    assert unfinished(three / "arith") == []
    assert check_whole(three) == [1, 3, 4]


def test_a_tag_whose_move_is_killed_names_the_old_version_or_the_new_one(three: Path) -> None:
    for change in count(1):
        was_killed = killed_before(change, move_tag, three, "paper", 2)
        assert linked_numbers(three / "arith")["paper"] in (1, 2)
        if not was_killed:
            break
    assert change > 2
    assert linked_numbers(three / "arith") == {"latest": 3, "paper": 2}
    assert check_whole(three) == [1, 2, 3]


def test_a_damaged_version_is_never_gone_while_it_is_mended(tmp_path: Path) -> None:
    version = publish_small(tmp_path, "q1")
    whole = shutil.copytree(version.path, tmp_path / "whole")
    (version.path / "sft" / "verifier.parquet").unlink()
    (version.path / "stranger").mkdir()
    for change in count(1):
        copy = shutil.copytree(whole, tmp_path / f"copy{change}")
        was_killed = killed_before(change, mend, version.path, copy)
        assert open_version("arith", tmp_path).number == 1
        if not was_killed:
            break
    assert change > 5
    assert check_whole(tmp_path) == [1]
