"""Pushing a version to a local stand-in for the Hugging Face Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.datasets.manifest import MANIFEST_FILE
from malt.datasets.push.files import Pushed, bundle_files
from malt.datasets.push.push import push
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.errors import InputError, PushDamaged, PushError
from tests.hub import OWNER, READ_TOKEN, Blob, Hub
from tests.hub import hub as hub
from tests.published import publish_questions, publish_two_datasets

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # raised in Hugging Face's library

MALT = "from malt.cli.main import main; main()"
PROJECT = Path(__file__).parents[3]
ID = f"{OWNER}/arith"
DEST = f"hf://datasets/{ID}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_two_datasets(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def datasets(published: Path) -> Path:
    """Versions that a test may push and change."""
    folder = Settings().datasets_dir
    shutil.copytree(published, folder, symlinks=True)
    return folder


@pytest.fixture
def another(tmp_path: Path) -> DatasetVersion:
    """Version with the name and number of `arith@v1` and other content."""
    return publish_questions(["q3"], tmp_path / "elsewhere")


def pushed(reference: str, *, public: bool = False) -> Pushed:
    return push(open_version(reference), DEST, public=public)


def contents(hub: Hub, revision: str) -> dict[str, bytes]:
    """Return the repository's files except those that the Hub adds itself."""
    files = hub.repositories[ID].files(revision)
    return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}


def files_of(reference: str) -> dict[str, bytes]:
    return {file.path: file.local.read_bytes() for file in bundle_files(open_version(reference)).files}


def test_a_version_becomes_one_commit_and_a_tag(hub: Hub) -> None:
    done = pushed("arith@v1")
    repository = hub.repositories[ID]
    assert repository.messages == ["initial commit", "arith@v1"]
    assert repository.tags == {"v1": done.commit} == {"v1": repository.branches["main"]}
    assert contents(hub, "v1") == files_of("arith@v1")
    assert (done.url, done.sent, done.verified) == (
        f"{hub.address}/datasets/{ID}/tree/v1",
        *[len(files_of("arith@v1"))] * 2,
    )


def test_a_repository_is_private_unless_public_is_requested(hub: Hub) -> None:
    assert pushed("arith@v1").private is hub.repositories[ID].is_private is True
    hub.repositories.clear()
    assert pushed("arith@v1", public=True).private is hub.repositories[ID].is_private is False


def test_a_private_version_is_not_pushed_to_a_public_repository(hub: Hub) -> None:
    pushed("arith@v1", public=True)
    with pytest.raises(PushError, match=r"is public; nothing was sent. If anyone may read this version, add --public"):
        pushed("arith@v2")
    assert pushed("arith@v2", public=True).private is False


def test_a_version_pushed_again_is_checked_and_not_sent(hub: Hub) -> None:
    first = pushed("arith@v1")
    hub.requests.clear()
    again = pushed("arith@v1")
    assert (again.commit, again.sent, again.skipped, again.verified) == (first.commit, 0, first.sent, first.sent)
    assert {line.partition(" ")[0] for line in hub.requests} == {"GET"}


def test_main_holds_the_newest_version_and_each_tag_its_own(hub: Hub) -> None:
    pushed("arith@v1")
    pushed("arith@v2")
    assert contents(hub, "main") == contents(hub, "v2") == files_of("arith@v2")
    assert contents(hub, "v1") == files_of("arith@v1")


def test_an_older_version_is_tagged_beside_main(hub: Hub) -> None:
    pushed("arith@v2")
    assert pushed("arith@v1").sent > 0
    assert contents(hub, "main") == files_of("arith@v2")
    assert contents(hub, "v1") == files_of("arith@v1")
    assert list(hub.repositories[ID].branches) == ["main"]
    assert pushed("arith@v1").sent == 0


def test_a_file_that_only_the_previous_version_had_is_removed(hub: Hub) -> None:
    pushed("arith@v1")
    repository = hub.repositories[ID]
    manifest = json.loads(repository.files("main")[MANIFEST_FILE].content)
    manifest["files"]["old.parquet"] = manifest["files"]["questions.parquet"]
    left = {
        MANIFEST_FILE: Blob(json.dumps(manifest).encode(), is_large=False),
        "old.parquet": Blob(b"?", is_large=True),
    }
    repository.commit("main", {**repository.files("main"), **left, "LICENSE": Blob(b"MIT", is_large=False)}, "by hand")
    pushed("arith@v2")
    assert contents(hub, "main") == {**files_of("arith@v2"), "LICENSE": b"MIT"}


def test_a_push_killed_half_way_goes_on_where_it_was(hub: Hub) -> None:
    hub.stall_at = 4
    killed = subprocess.Popen([sys.executable, "-c", MALT, "push", "arith@v1", DEST], env=os.environ, cwd=PROJECT)
    assert hub.stalled.wait(180)
    killed.kill()
    killed.wait()
    hub.stall_at = None
    arrived = set(hub.uploads)
    hub.uploads.clear()
    assert arrived
    assert hub.repositories[ID].messages == ["initial commit"]
    pushed("arith@v1")
    assert hub.uploads
    assert not arrived.intersection(hub.uploads)
    assert contents(hub, "v1") == files_of("arith@v1")


def test_a_push_killed_before_the_tag_only_tags(hub: Hub) -> None:
    first = pushed("arith@v1")
    del hub.repositories[ID].tags["v1"]
    again = pushed("arith@v1")
    assert (again.sent, again.commit) == (0, first.commit)
    assert hub.repositories[ID].tags == {"v1": first.commit}


@pytest.mark.parametrize("file", ["sft/generator.parquet", "README.md"])
def test_a_file_that_arrives_damaged_is_found_and_sent_again(hub: Hub, file: str) -> None:
    hub.damaged = {file}
    with pytest.raises(PushDamaged, match=f"by the Hub's own digests: {file}; there is no tag v1 yet. Push again"):
        pushed("arith@v1")
    assert hub.repositories[ID].tags == {}
    hub.damaged.clear()
    assert pushed("arith@v1").sent == 1
    assert contents(hub, "v1") == files_of("arith@v1")


def test_a_tag_with_other_content_is_not_moved(hub: Hub, another: DatasetVersion) -> None:
    commit = pushed("arith@v1").commit
    with pytest.raises(PushError, match=r"has a tag v1 with other content \(.* more\); nothing was sent. Push to ano"):
        push(another, DEST)
    assert hub.repositories[ID].tags == {"v1": commit}


def test_another_version_of_that_number_is_not_overwritten(hub: Hub, another: DatasetVersion) -> None:
    pushed("arith@v1")
    del hub.repositories[ID].tags["v1"]
    with pytest.raises(PushError, match="holds another arith@v1, not tagged yet; nothing was sent"):
        push(another, DEST)
    assert contents(hub, "main") == files_of("arith@v1")


def test_a_repository_holds_versions_of_one_dataset(hub: Hub) -> None:
    pushed("arith@v2")
    with pytest.raises(PushError, match="holds versions of 'arith', not of 'logic'; nothing was sent"):
        push(open_version("logic"), DEST)


def test_files_of_others_are_not_overwritten(hub: Hub) -> None:
    pushed("arith@v1")
    repository = hub.repositories[ID]
    repository.tags.clear()
    repository.commit("main", {"README.md": Blob(b"my own words", is_large=False)}, "by hand")
    with pytest.raises(PushError, match=r"holds files that malt did not push \(README.md\); nothing was sent"):
        pushed("arith@v1")


def test_a_manifest_of_another_release_is_left_alone(hub: Hub) -> None:
    pushed("arith@v1")
    hub.repositories[ID].commit("main", {MANIFEST_FILE: Blob(b'{"format": 2}', is_large=False)}, "by a newer release")
    with pytest.raises(PushError, match=r"holds a manifest.json that this release cannot read; nothing was sent"):
        pushed("arith@v2")


def test_two_pushes_at_once_do_not_mix(hub: Hub) -> None:
    """The commit names its parent, so that somebody else's commit in between is not overwritten."""
    pushed("arith@v1")
    hub.raced = True
    with pytest.raises(PushError, match=r"changed there meanwhile \(A commit has happened.*; push again"):
        pushed("arith@v2")
    assert pushed("arith@v2").sent > 0


def refusal(dest: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one-line error of a push."""
    assert exit_code(["push", "arith@v1", dest]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def test_a_push_without_a_token_sends_nothing(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert f"{DEST}: no token; set HF_TOKEN, or log in with: hf auth login" in refusal(DEST, capsys)
    assert hub.requests == []


def test_a_login_will_do_for_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    login = Path(constants.HF_TOKEN_PATH)
    login.parent.mkdir()
    login.write_text(os.environ["HF_TOKEN"])
    monkeypatch.delenv("HF_TOKEN")
    assert pushed("arith@v1").sent > 0


def test_an_invalid_token_is_refused(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    said = refusal(DEST, capsys)
    assert "the Hub does not accept this token (Invalid credentials in Authorization header); set HF_TOKEN to a" in said
    assert "hf_hush" not in said


def test_a_token_that_may_only_read_is_refused(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    said = refusal(DEST, capsys)
    assert "this token may not write there (You don't have the rights to write under the namespace 'someone')" in said
    assert hub.repositories == {}


def test_anothers_namespace_is_refused(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "under the namespace 'google'); it needs write" in refusal("hf://datasets/google/arith", capsys)


def test_a_hub_out_of_reach_is_one_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert f"{DEST}: the Hub cannot be used (ConnectError: " in refusal(DEST, capsys)


@pytest.mark.parametrize("dest", ["hf://someone/arith", "hf://datasets/arith", "hf://datasets/a/b/c", "hf://"])
def test_a_destination_that_is_no_repository_is_refused(dest: str) -> None:
    with pytest.raises(InputError, match=f"{dest} names no dataset repository; write hf://datasets/OWNER/NAME"):
        push(open_version("arith@v1"), dest)


LOAD = f"""
from datasets import load_dataset
rows = load_dataset({ID!r}, "sft-generator", split="train", revision="v1")
print(len(rows), rows[0]["row_id"])
rows = load_dataset({ID!r}, "dpo-refiner", split="train")
print(len(rows))
"""


def test_pushed_versions_load_with_datasets(hub: Hub) -> None:
    pushed("arith@v1")
    pushed("arith@v2")
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=os.environ, capture_output=True, text=True, check=True)
    first, second = open_version("arith@v1").sft("generator"), open_version("arith@v2").dpo("refiner")
    assert loaded.stdout.split() == [str(len(first)), first["row_id"][0], str(len(second))]
