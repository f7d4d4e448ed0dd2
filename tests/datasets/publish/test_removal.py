"""Removing versions: a needed version stays, and a removed number is not reused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from malt.datasets.publish.removal import remove_version
from malt.datasets.publish.writer import VersionWriter
from malt.datasets.version.dataset_version import open_version
from malt.datasets.version.folders import linked_numbers, remove_tag, set_tag, tags_of, version_numbers
from malt.errors import VersionError
from tests.published import PROVENANCE, copied, mixed_shard, publish_questions, publish_small, spec_of


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset with three versions."""
    datasets_dir = tmp_path_factory.mktemp("datasets")
    for question_id in ("q1", "q2", "q3"):
        publish_questions([question_id], datasets_dir)
    return datasets_dir


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return copied(published, tmp_path).path.parent


def test_a_version_that_nothing_needs_is_removed_with_all_its_files(folder: Path) -> None:
    removed = remove_version("arith@v2", folder.parent)
    assert (removed.version, removed.path) == ("arith@v2", folder / "v2")
    assert removed.bytes > 10_000
    assert sorted(entry.name for entry in folder.glob("[!.]*")) == ["latest", "v1", "v3"]
    assert list(folder.glob(".tmp-*")) == []


@pytest.mark.parametrize("reference", ["arith", "arith@latest", "arith@v3"])
def test_the_latest_version_cannot_be_removed(folder: Path, reference: str) -> None:
    with pytest.raises(VersionError, match=r"arith@v3 stays: `latest` names it. Make a newer version first"):
        remove_version(reference, folder.parent)
    assert version_numbers(folder) == [1, 2, 3]


def test_a_tagged_version_cannot_be_removed_until_its_tag_is(folder: Path) -> None:
    set_tag(folder, "paper", 1)
    for reference in ("arith@v1", "arith@paper", folder / "v1"):
        with pytest.raises(VersionError, match=r"it is tagged paper. First: malt tag arith paper --remove"):
            remove_version(reference, folder.parent)
    remove_tag(folder, "paper")
    assert remove_version("arith@v1", folder.parent).version == "arith@v1"


def test_the_newest_stays_though_a_crash_left_latest_behind(folder: Path) -> None:
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("v1")
    with pytest.raises(VersionError, match="arith@v3 stays"):
        remove_version("arith@v3", folder.parent)
    assert linked_numbers(folder) == {"latest": 3}
    assert remove_version("arith@v1", folder.parent).version == "arith@v1"


def test_a_removed_version_s_number_is_not_given_again(folder: Path) -> None:
    remove_version("arith@v1", folder.parent)
    remove_version("arith@v2", folder.parent)
    assert publish_questions(["q1"], folder.parent).number == 4


def test_a_publisher_skips_a_number_that_was_used_and_removed_meanwhile(folder: Path) -> None:
    """Version 4 is published and removed while the slow publisher is about to take that number."""
    with VersionWriter(spec_of(), PROVENANCE, folder) as slow:
        slow.add(mixed_shard("slow"))
        for question_id in ("q4", "q5"):
            publish_questions([question_id], folder.parent)
        remove_version("arith@v4", folder.parent)
        assert slow.publish().number == 6


def test_a_lost_newest_version_s_number_is_not_given_again(folder: Path) -> None:
    (folder / "v3").rename(folder.parent / "elsewhere")
    assert publish_questions(["q9"], folder.parent).number == 4


def test_a_damaged_version_is_removed_too(folder: Path) -> None:
    (folder / "v2" / "manifest.json").unlink()
    remove_version("arith@v2", folder.parent)
    assert version_numbers(folder) == [1, 3]


def test_a_version_is_removed_once(folder: Path) -> None:
    remove_version("arith@v2", folder.parent)
    with pytest.raises(VersionError, match="dataset 'arith' has no version v2; there are: v1, v3"):
        remove_version("arith@v2", folder.parent)


def test_a_copy_is_not_removed(folder: Path) -> None:
    copy = open_version("arith@v1", folder.parent).path.rename(folder.parent / "copy")
    with pytest.raises(VersionError, match=r"copy is a copy outside its dataset's folder"):
        remove_version(copy)
    assert (copy / "manifest.json").is_file()


def test_a_version_that_is_tagged_and_removed_at_once_is_either(tmp_path: Path) -> None:
    for attempt in range(10):
        for question_id in (f"a{attempt}", f"b{attempt}"):
            publish_small(tmp_path, question_id)
        folder, number = tmp_path / "arith", 2 * attempt + 1
        together = Barrier(2)

        def tag(number: int, folder: Path = folder, together: Barrier = together) -> None:
            together.wait()
            set_tag(folder, f"t{number}", number)

        def remove(number: int, folder: Path = folder, together: Barrier = together) -> None:
            together.wait()
            remove_version(f"arith@v{number}", folder.parent)

        with ThreadPoolExecutor(2) as pool:
            failed = [work.exception() for work in (pool.submit(tag, number), pool.submit(remove, number))]
        assert [type(error) for error in failed if error] == [VersionError]
        assert (number in version_numbers(folder)) == (f"t{number}" in tags_of(folder))
