"""Pushing a model version to the Hub: into a repository of models, complete, and loadable from there."""

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from malt.datasets.push.push import push
from malt.errors import InputError, PushError
from malt.models.publishing import verify
from malt.models.version import open_folder
from tests.hub import OWNER, Hub
from tests.hub import hub as hub
from tests.models.conftest import Publish

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # raised in Hugging Face's library

ID = f"{OWNER}/laptop"


def test_a_model_version_becomes_a_commit_and_a_tag_in_a_repository_of_models(
    publish: Publish, hub: Hub, tmp_path: Path
) -> None:
    done = push(publish(), f"hf://{ID}")
    assert (done.version, done.url, done.private) == ("models/laptop@v1", f"{hub.address}/{ID}/tree/v1", True)
    assert hub.repositories[ID].kind == "model"
    assert push(publish(), f"hf://{ID}").sent == 0
    loaded = open_folder(Path(snapshot_download(ID, revision="v1", local_dir=tmp_path / "laptop" / "v1")))
    assert loaded.manifest == publish().manifest
    assert [told for told in verify(loaded) if ".gitattributes" not in told and ".cache" not in told] == []


@pytest.mark.parametrize("dest", ["hf://laptop", f"hf://datasets/{ID}", f"hf://{ID}/more", "hf://"])
def test_a_destination_that_is_no_repository_of_models_is_refused(publish: Publish, dest: str) -> None:
    with pytest.raises(InputError, match=f"{dest} names no model repository; write hf://OWNER/NAME"):
        push(publish(), dest)


def test_a_repository_holds_versions_of_one_model(publish: Publish, hub: Hub) -> None:
    push(publish(), f"hf://{ID}")
    publish(name="other")
    with pytest.raises(PushError, match="holds versions of 'models/laptop', not of 'models/other'"):
        push(publish("two", name="other"), f"hf://{ID}")
    assert [*hub.repositories] == [ID]
