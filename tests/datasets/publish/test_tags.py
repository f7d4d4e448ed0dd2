"""Tags: names for versions, set, moved and removed, by several writers at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from malt.datasets.version.dataset_version import list_versions, open_version
from malt.datasets.version.folders import linked_numbers, remove_tag, set_tag, tags_of
from malt.errors import VersionError
from tests.published import copied, publish_questions


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset with two versions."""
    folder = tmp_path_factory.mktemp("datasets")
    publish_questions(["q1"], folder)
    publish_questions(["q1", "q2"], folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return copied(published, tmp_path).path.parent


def test_a_tag_opens_its_version_wherever_a_version_is_named(folder: Path) -> None:
    assert set_tag(folder, "paper", 1) is None
    for reference in ("arith@paper", folder / "paper"):
        version = open_version(reference, folder.parent)
        assert (version.reference, version.path, version.tags) == ("arith@v1", folder / "v1", ["paper"])


def test_a_tag_stays_when_newer_versions_are_published(folder: Path) -> None:
    set_tag(folder, "paper", 2)
    assert publish_questions(["q3"], folder.parent).number == 3
    assert open_version("arith@paper", folder.parent).number == 2
    assert [version.tags for version in list_versions(folder.parent).versions] == [[], ["paper"], []]


def test_a_tag_moves_only_when_told_to(folder: Path) -> None:
    set_tag(folder, "paper", 1)
    with pytest.raises(VersionError, match="arith@paper points at v1; to move it to v2, add --move"):
        set_tag(folder, "paper", 2)
    assert set_tag(folder, "paper", 1) == 1
    assert set_tag(folder, "paper", 2, move=True) == 1
    assert tags_of(folder) == {"paper": 2}


def test_a_removed_tag_leaves_its_version(folder: Path) -> None:
    set_tag(folder, "paper", 1)
    assert remove_tag(folder, "paper") == 1
    assert open_version("arith@v1", folder.parent).tags == []
    with pytest.raises(VersionError, match="dataset 'arith' has no tag 'paper'; there are: none"):
        remove_tag(folder, "paper")


@pytest.mark.parametrize(
    "tag", ["v3", "V3", "v1.0", "3", "latest", "Latest", "", ".tmp", "a/b", "..", "a b", "ä", "a" * 101]
)
def test_a_tag_that_reads_like_a_number_or_latest_is_refused(folder: Path, tag: str) -> None:
    with pytest.raises(VersionError, match="is no valid tag"):
        set_tag(folder, tag, 1)
    assert linked_numbers(folder) == {"latest": 2}


@pytest.mark.parametrize("tag", ["paper", "ICLR-2026", "v", "vanilla", "latest2", "a.b_c-d"])
def test_any_other_word_may_be_a_tag(folder: Path, tag: str) -> None:
    set_tag(folder, tag, 1)
    assert open_version(f"arith@{tag}", folder.parent).number == 1


def test_latest_is_no_tag_to_be_removed(folder: Path) -> None:
    with pytest.raises(VersionError, match="has no tag 'latest'"):
        remove_tag(folder, "latest")


def test_a_missing_tag_is_refused_with_the_existing_ones(folder: Path) -> None:
    set_tag(folder, "paper", 1)
    with pytest.raises(VersionError, match="dataset 'arith' has no tag papre; there are: v1, v2, paper"):
        open_version("arith@papre", folder.parent)


def test_a_file_that_is_no_tag_is_never_replaced(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    with pytest.raises(VersionError, match="notes exists and is no tag"):
        set_tag(folder, "notes", 1, move=True)
    assert (folder / "notes").read_text() == "mine"


def test_a_missing_version_is_not_tagged(folder: Path) -> None:
    with pytest.raises(VersionError, match="arith@v7 does not exist; tag another version"):
        set_tag(folder, "paper", 7)
    assert tags_of(folder) == {}


def test_one_of_several_concurrent_writers_sets_a_new_tag(folder: Path) -> None:
    together = Barrier(8)

    def tag(writer: int) -> bool:
        together.wait()
        try:
            set_tag(folder, "paper", writer % 2 + 1)
        except VersionError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [writer for writer, had in enumerate(pool.map(tag, range(8))) if had]
    assert {writer % 2 + 1 for writer in won} == {tags_of(folder)["paper"]}
    assert list(folder.glob(".tmp-*")) == []
