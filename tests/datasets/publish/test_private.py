"""Files in the data folder are private to the user whatever the umask, also while they are being written."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from malt import TrainingDataGenerator
from malt.config.settings import Settings
from malt.datasets.publish.writer import VersionWriter
from malt.datasets.version.folders import open_staging, set_tag
from malt.files import make_private_folder
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.store.samples import Store
from tests.providers import ScriptedProvider
from tests.published import PROVENANCE, mixed_shard, publish_questions, spec_of


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """List files and folders that other users may read, write or enter; links do not count."""
    return [
        f"{path} {stat.filemode(path.lstat().st_mode)}"
        for path in folder.rglob("*")
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]


def test_published_versions_tags_and_locks_are_private_to_the_user(tmp_path: Path) -> None:
    publish_questions(["q1"], tmp_path / "datasets")
    publish_questions(["q1", "q2"], tmp_path / "datasets")
    set_tag(tmp_path / "datasets" / "arith", "paper", 1)
    assert (tmp_path / "datasets" / "arith" / ".lock").exists()
    assert open_to_others(tmp_path) == []


def test_a_version_is_written_in_a_private_folder(tmp_path: Path) -> None:
    with VersionWriter(spec_of(), PROVENANCE, tmp_path / "datasets" / "arith") as writer:
        writer.add(mixed_shard("q1"))
        [staging] = (tmp_path / "datasets" / "arith").glob(".tmp-*")
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700
        assert re.search(r"-[0-9a-f]{8}$", staging.name)  # an unpredictable name
        assert open_staging(staging.parent) != staging


async def test_the_store_and_a_dataset_s_lock_are_private_to_the_user(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with Store(settings.store) as store:
        list(store.old_rows(0))
        async with hold_run_lock("arith", settings, "a test"):
            assert {path.name for path in (tmp_path / "data").iterdir()} >= {"store.db", "store.db-wal"}
            assert open_to_others(tmp_path) == []
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    make_private_folder(tmp_path / "shared" / "mine" / "deep")
    modes = [stat.S_IMODE((tmp_path / place).stat().st_mode) for place in ("shared", "shared/mine", "shared/mine/deep")]
    assert modes == [0o755, 0o700, 0o700]


def test_no_module_names_a_file_in_the_shared_temporary_folder() -> None:
    """`tempfile` gives unpredictable names, and files of mode 0600."""
    root = Path(__file__).parents[3]
    fixed = re.compile(r"""["']/tmp|gettempdir|mktemp\(|TMPDIR""")
    sources = [path for part in ("malt", "tasks", "flows") for path in (root / part).rglob("*.py")]
    assert sources
    assert [str(path) for path in sources if fixed.search(path.read_text())] == []


async def test_a_run_s_files_in_the_data_folder_are_private_to_the_user(
    provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "k")
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "data"))
    generator = TrainingDataGenerator("openai/m", api_base=provider.url, api_key_env="TEST_KEY", use_llm_eval=False)
    await generator.generate_and_evaluate([{"question": "What is 2 + 2?", "ground_truth": "4"}])
    assert (tmp_path / "data" / "store.db").exists()
    assert open_to_others(tmp_path) == []
