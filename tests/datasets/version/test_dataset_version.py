"""Opening, listing and reading dataset versions."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.config.roles import PLAYERS, Role
from malt.datasets.version.dataset_version import list_versions, open_version
from malt.errors import VersionError
from tests.published import PROVENANCE, mixed_tree, publish, publish_questions, publish_two_datasets, spec_of
from tests.strategies import incomplete_tree_of, valued


@pytest.fixture(scope="module")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_two_datasets(tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize(
    ("reference", "number"),
    [("arith", 2), ("arith@latest", 2), ("arith@v1", 1), ("arith@2", 2), ("logic", 1)],
)
def test_a_version_is_named_by_dataset_and_number(datasets_dir: Path, reference: str, number: int) -> None:
    version = open_version(reference, datasets_dir)
    assert (version.reference, version.created) == (f"{version.name}@v{number}", False)


def test_a_version_is_opened_by_its_path_and_through_latest(datasets_dir: Path) -> None:
    by_path = open_version(datasets_dir / "arith" / "v2", datasets_dir)
    assert open_version(str(datasets_dir / "arith" / "latest"), datasets_dir) == by_path
    assert by_path.path.name == "v2"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("arith@v9", "dataset 'arith' has no version v9; there are: v1, v2"),
        ("spelling", "no dataset 'spelling' in .*; there are: arith, logic"),
        ("no/such/folder", "neither NAME, NAME@v3, NAME@TAG, nor a folder with a manifest.json"),
    ],
)
def test_a_missing_version_is_refused_with_the_existing_ones(datasets_dir: Path, reference: str, said: str) -> None:
    with pytest.raises(VersionError, match=said):
        open_version(reference, datasets_dir)


def test_versions_are_listed_by_name_and_number(datasets_dir: Path) -> None:
    assert [each.reference for each in list_versions(datasets_dir).versions] == ["arith@v1", "arith@v2", "logic@v1"]
    assert [each.reference for each in list_versions(datasets_dir, "arith").versions] == ["arith@v1", "arith@v2"]


def test_listing_before_the_first_version_lists_none(tmp_path: Path) -> None:
    assert list_versions(tmp_path / "never") == ([], {})
    with pytest.raises(VersionError, match="there are: none yet"):
        list_versions(tmp_path / "never", "arith")


def test_a_damaged_manifest_names_the_file_and_the_field(tmp_path: Path) -> None:
    version = publish_questions(["q1"], tmp_path)
    manifest = version.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(VersionError, match=r"manifest.json: format: .*newer release"):
        open_version(version.path)


def test_rows_come_as_data_frames(datasets_dir: Path) -> None:
    version = open_version("arith", datasets_dir)
    assert len(version.trajectories) == 78
    assert list(version.questions["question_id"]) == ["q1", "q2"]
    for role in PLAYERS:
        assert version.sft(role).columns[:2].tolist() == ["prompt", "completion"]
        assert version.kto(role)["label"].sum() == len(version.sft(role)) > 0
    assert (version.dpo("verifier")["margin"] > 0).all()
    assert version.sft(Role.VERIFIER)["prompt"][0][0] == {"role": "system", "content": "You are the verifier."}


def test_one_question_s_nodes_come_depth_first(datasets_dir: Path) -> None:
    rows = open_version("arith", datasets_dir).tree_rows("q2")
    assert rows["node_id"].head(6).tolist() == ["0", "0.0", "0.0.0", "0.0.1", "0.0.2", "0.1"]
    assert set(rows["question_id"]) == {"q2"}


@pytest.mark.parametrize("place", [lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere")])
def test_a_number_taken_by_something_else_than_a_version_folder_is_skipped(
    tmp_path: Path, place: Callable[[Path], object]
) -> None:
    publish_questions(["q1"], tmp_path)
    place(tmp_path / "arith" / "v2")
    assert [version.number for version in list_versions(tmp_path).versions] == [1]
    assert publish_questions(["q2"], tmp_path).reference == "arith@v3"


def test_a_folder_where_latest_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "arith" / "latest").mkdir(parents=True)
    with pytest.raises(VersionError, match="latest is a folder, and should be a link to v1; move it away"):
        publish_questions(["q1"], tmp_path)
    assert {entry.name for entry in (tmp_path / "arith").glob("[!.]*")} == {"latest", "v1"}


def test_a_file_where_the_dataset_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "arith").write_text("x")
    with pytest.raises(VersionError, match="arith: a folder for versions cannot be made there"):
        publish_questions(["q1"], tmp_path)


@pytest.mark.parametrize("name", ["", "..", "/etc", "a" * 5000])
def test_an_invalid_dataset_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VersionError, match="names no dataset"):
        list_versions(tmp_path, name)


@pytest.mark.parametrize("reference", ["a" * 5000, "~nobody-of-this-name/v1"])
def test_a_path_that_cannot_be_is_refused(reference: str) -> None:
    with pytest.raises(VersionError, match="cannot be opened"):
        open_version(reference)


def test_a_tree_comes_back_as_it_was_published(datasets_dir: Path) -> None:
    published = {each: mixed_tree(each) for each in ("q1", "q2")}
    version = open_version("arith", datasets_dir)
    again = {tree.tree.question.question_id: tree for tree in version.trees()}
    assert list(again) == ["q1", "q2"]
    for question_id, tree in published.items():
        for back in (version.tree(question_id), again[question_id]):
            assert (back.values, back.grades, back.tree.question) == (tree.values, tree.grades, tree.tree.question)
            assert {each.text for each in back.tree.nodes.values()} == {each.text for each in tree.tree.nodes.values()}


def test_a_tree_that_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    trees = [mixed_tree("q1"), valued(incomplete_tree_of("q2"), {})]
    version = publish(trees, spec_of(), PROVENANCE, tmp_path)
    for read in (version.tree, version.tree_rows):
        with pytest.raises(VersionError, match=r"no tree for question 'q9'; questions\.parquet lists the questions"):
            read("q9")
    with pytest.raises(VersionError, match="'q2' has no tree in arith@v1: generator below the root: HTTP 500"):
        version.tree("q2")
    assert [tree.tree.question.question_id for tree in version.trees()] == ["q1"]


def test_a_version_of_a_release_with_other_columns_is_read(tmp_path: Path) -> None:
    version = publish([mixed_tree("q0")], spec_of("sums"), PROVENANCE, tmp_path)
    file = version.path / "trajectories.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("mood", pa.array(["calm"] * len(table))), file)
    again = open_version(version.path)
    assert [tree.tree.nodes for tree in again.trees()] == [tree.tree.nodes for tree in version.trees()]
    assert list(again.trajectories.mood.unique()) == ["calm"]
    pq.write_table(table.set_column(0, table.column_names[0], pa.array([b"?"] * len(table))), file)
    with pytest.raises(VersionError, match="its columns are not those of a published file"):
        open_version(version.path).trajectories  # noqa: B018 - reading is what fails


def test_a_dataset_whose_folder_is_a_link_to_another_disk_is_within_the_data_folder(tmp_path: Path) -> None:
    publish([mixed_tree("q0")], spec_of("sums"), PROVENANCE, tmp_path / "disk")
    datasets = tmp_path / "data" / "datasets"
    datasets.mkdir(parents=True)
    (datasets / "sums").symlink_to(tmp_path / "disk" / "sums")
    own, elsewhere = open_version("sums", datasets), open_version(tmp_path / "disk" / "sums" / "v1")
    assert own.is_within(datasets)
    assert own.is_within(tmp_path / "data")
    assert not elsewhere.is_within(tmp_path / "other")
