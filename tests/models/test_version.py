"""Model versions: immutable, identified by content, and read defensively since somebody else may have written them."""

import json
from pathlib import Path

import pytest

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.check.compare import Change
from malt.datasets.publish.removal import remove_version
from malt.datasets.push.push import push
from malt.errors import PushError, TrainingFailed, VersionError
from malt.models.compare import compare_models
from malt.models.publishing import Made, TrainedRole, publish_models, verify
from malt.models.version import list_models, open_model
from tests.models.conftest import BASE, DATASET, STAGE, Publish


def test_equal_weights_make_no_new_version(publish: Publish) -> None:
    first, again, other = publish(), publish(), publish("two")
    assert (first.created, again.created, other.created) == (True, False, True)
    assert again.path == first.path
    assert (other.number, other.manifest.parent and other.manifest.parent.version) == (2, 1)
    assert [version.reference for version in list_models(Settings().models_dir)[0]] == [
        "models/laptop@v1",
        "models/laptop@v2",
    ]


def test_a_role_without_weights_is_not_published(tmp_path: Path, settings: Settings) -> None:
    gone = TrainedRole(tmp_path / "gone", "0" * 64, (STAGE,), (), {})
    with pytest.raises(TrainingFailed, match=r"the refiner has no weights in .+, so nothing was published"):
        publish_models(Made("laptop", BASE, DATASET, TrainSpec()), {Role.REFINER: gone}, settings.models_dir)
    assert list_models(settings.models_dir)[0] == []


def test_a_version_opens_by_name_number_shelf_and_folder(publish: Publish) -> None:
    publish()
    newest = publish("two")
    for reference in ("laptop", "laptop@v2", "models/laptop", "models/laptop@v2", newest.path):
        assert open_model(reference) == open_model(newest.path)
    with pytest.raises(VersionError, match="has no version v7; there are: v1, v2"):
        open_model("laptop@v7")


def test_a_notebook_shows_what_each_stage_of_each_role_did(publish: Publish) -> None:
    version = publish()
    assert set(version.figures.role) == {role.value for role in version.manifest.roles}
    assert "loss_last" in version._repr_html_()


def test_an_intact_version_verifies_and_changes_are_named(publish: Publish) -> None:
    version = publish()
    assert verify(version) == []
    (version.path / "generator/model.gguf").write_bytes(b"GGUF others")
    (version.path / "README.md").write_text("# Better")
    (version.path / "extra.pkl").write_bytes(b"")
    assert verify(version) == [
        "extra.pkl: is not in the manifest",
        "README.md: its bytes changed since it was published",
        "generator/model.gguf: its bytes changed since it was published",
        "README.md: differs from the page that the other files give",
    ]


@pytest.mark.parametrize(
    "file",
    ["../outside.json", "/etc/passwd", "generator/../../x.json", "generator\\x.json", "a//b.json", ".hidden.json"],
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(publish: Publish, file: str) -> None:
    version = publish()
    name_file(version.path, file)
    with pytest.raises(VersionError, match="files"):
        open_model(version.path)


@pytest.mark.parametrize("file", ["generator/adapter/adapter_model.bin", "generator/weights.pkl", "run.py"])
def test_a_manifest_that_names_a_pickle_or_code_is_refused(publish: Publish, file: str) -> None:
    version = publish()
    name_file(version.path, file)
    with pytest.raises(VersionError, match="is of a kind that model versions do not have"):
        open_model(version.path)


def name_file(folder: Path, file: str) -> None:
    """Add a file to a manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("link", ["generator/model.gguf", "generator/adapter"])
def test_a_version_with_a_link_is_refused(publish: Publish, tmp_path: Path, link: str) -> None:
    version = publish()
    (version.path / link).rename(tmp_path / "elsewhere")
    (version.path / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VersionError, match="is a link or no plain file"):
        open_model(version.path)


def test_a_comparison_lists_the_changes_between_versions(publish: Publish) -> None:
    found = compare_models(publish(), publish("two", roles=("generator", "verifier")))
    assert not found.same_content
    assert found.roles == {"generator": "changed", "verifier": "added", "refiner": "removed"}
    assert found.losses == {"refiner.sft": Change(old=1.5, new=None), "verifier.sft": Change(old=None, new=1.5)}
    assert found.inputs == {}


def test_a_pushed_version_arrives_whole_and_opens_there(publish: Publish, tmp_path: Path) -> None:
    pushed = push(publish(), str(tmp_path / "shared"))
    arrived = open_model(tmp_path / "shared/models/laptop/v1")
    assert pushed.version == arrived.reference == "models/laptop@v1"
    assert verify(arrived) == []


@pytest.mark.parametrize("link", ["models", "models/laptop", "models/laptop/v1"])
def test_a_push_writes_through_no_link_on_the_way(publish: Publish, tmp_path: Path, link: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shared" / link).parent.mkdir(parents=True)
    (tmp_path / "shared" / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PushError, match="is a link"):
        push(publish(), str(tmp_path / "shared"))
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_an_older_version_can_be_removed_and_the_newest_stays(publish: Publish) -> None:
    older, newest = publish(), publish("two")
    remove_version("laptop@v1", Settings().models_dir)
    assert not older.path.exists()
    with pytest.raises(VersionError, match="stays: `latest` names it"):
        remove_version("laptop@v2", Settings().models_dir)
    assert newest.path.exists()
