"""`malt gc`: it removes old rows that no version uses and the folders of dead writers, and nothing else."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.datasets.publish.removal import Garbage, collect_garbage, remove_version
from malt.datasets.version.dataset_version import open_version
from malt.datasets.version.folders import open_staging, temporary_name
from malt.errors import ConfigError, VersionError
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import ASIDE, Store
from tests.postgres import postgres as postgres
from tests.published import copied, publish_questions
from tests.strategies import addresses

DAY = 86_400.0
OLD = time.time() - 40 * DAY


def sample(key: str, question_id: str, role: str = "generator", created_at: float = OLD) -> StoredSample:
    return StoredSample(key, question_id, role, "m", "", 0, '{"four": 4}', None, None, 0.5, created_at)


def samples_of(question_id: str) -> list[StoredSample]:
    """Return the stored rows of a tree that `publish_questions` publishes, and one row of its judge."""
    nodes = [sample(f"{question_id}/{address}", question_id, address.role) for address in addresses()]
    return [*nodes, sample(f"judge-of-{question_id}", question_id, Role.EVALUATOR)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets folder with two versions of one question each."""
    datasets_dir = tmp_path_factory.mktemp("datasets")
    for question_id in ("q1", "q2"):
        publish_questions([question_id], datasets_dir)
    return datasets_dir


@pytest.fixture
def store(published: Path, settings: Settings) -> Store:
    """Store with the rows of two versions, and of a question that is in neither."""
    copied(published, settings.datasets_dir)
    store = Store(settings.store)
    for question_id in ("q1", "q2", "q3"):
        store.write(samples_of(question_id))
    return store


def keys(store: Store, question_ids: Iterable[str] = ("q1", "q2", "q3")) -> set[str]:
    return set(store.rows(question_ids))


def test_rows_that_no_version_uses_go_and_all_others_stay(store: Store, settings: Settings) -> None:
    found = collect_garbage(settings, 30 * DAY, delete=True)
    assert found == Garbage(versions=2, rows=40, row_bytes=40 * 11, folders=0, folder_bytes=0)
    assert keys(store) == {row.key for question_id in ("q1", "q2") for row in samples_of(question_id)}


def test_an_evaluation_s_answers_stay(store: Store, settings: Settings) -> None:
    folder = settings.data_dir / "evaluations" / "sums" / "v1"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"question_id": ["q3", "q3"]}), folder / "answers.parquet")
    assert collect_garbage(settings, 30 * DAY, delete=True).rows == 0
    (folder / "answers.parquet").write_bytes(b"cut off")
    with pytest.raises(VersionError, match=r"answers\.parquet cannot be read, .*nothing was removed"):
        collect_garbage(settings, 30 * DAY, delete=True)


def test_a_dry_run_counts_the_same_and_removes_nothing(store: Store, settings: Settings) -> None:
    before = keys(store)
    counted = collect_garbage(settings, 30 * DAY)
    assert keys(store) == before
    assert collect_garbage(settings, 30 * DAY, delete=True) == counted


def test_young_rows_stay_since_a_run_may_be_growing(store: Store, settings: Settings) -> None:
    store.write([sample("young", "q3", created_at=time.time() - 29 * DAY)])
    assert collect_garbage(settings, 30 * DAY, delete=True).rows == 40
    assert keys(store, ["q3"]) == {"young"}
    assert collect_garbage(settings, 28 * DAY, delete=True).rows == 1


def test_a_sample_beyond_those_that_a_version_has_goes(store: Store, settings: Settings) -> None:
    store.write([sample("q1/3", "q1"), sample("q1/0.3", "q1", Role.VERIFIER)])
    assert collect_garbage(settings, 30 * DAY, delete=True).rows == 42
    assert {"q1/3", "q1/0.3"} & keys(store) == set()


def test_a_judge_s_replies_to_questions_of_any_version_stay(store: Store, settings: Settings) -> None:
    store.write([sample("another-judge", "q1", Role.EVALUATOR), sample("stray-judge", "q4", Role.EVALUATOR)])
    collect_garbage(settings, 30 * DAY, delete=True)
    assert "another-judge" in keys(store)
    assert keys(store, ["q4"]) == set()


def test_an_answer_set_aside_stays_as_long_as_its_key_is_used(store: Store, settings: Settings) -> None:
    store.write([sample(f"q1/0{ASIDE}123.5", "q1"), sample(f"q3/0{ASIDE}123.5", "q3")])
    assert collect_garbage(settings, 30 * DAY, delete=True).rows == 41
    assert f"q1/0{ASIDE}123.5" in keys(store)


def test_the_rows_of_a_removed_version_go_unless_another_shares_them(store: Store, settings: Settings) -> None:
    publish_questions(["q2", "q3"], settings.datasets_dir)
    remove_version("arith@v1")
    remove_version("arith@v2")
    assert collect_garbage(settings, 30 * DAY, delete=True).rows == 40
    assert keys(store) == {row.key for question_id in ("q2", "q3") for row in samples_of(question_id)}


def test_rows_are_judged_by_the_versions_of_all_datasets(store: Store, settings: Settings, tmp_path: Path) -> None:
    publish_questions(["q3"], tmp_path / "elsewhere", "logic")
    assert collect_garbage(settings, 30 * DAY).rows == 40
    assert collect_garbage(settings, 30 * DAY, also_in=[tmp_path / "elsewhere"]).rows == 0
    publish_questions(["q3"], settings.datasets_dir, "logic")
    assert collect_garbage(settings, 30 * DAY).rows == 0


def test_a_shared_store_needs_all_folders_named_before_anything_goes(store: Store, settings: Settings) -> None:
    shared = Settings(data_dir=settings.data_dir, store_url=settings.store)
    with pytest.raises(ConfigError, match="name every folder of datasets made from it with --datasets"):
        collect_garbage(shared, 30 * DAY, delete=True)
    assert collect_garbage(shared, 30 * DAY).rows == 40
    assert collect_garbage(shared, 30 * DAY, delete=True, also_in=[settings.datasets_dir]).versions == 2
    assert keys(store, ["q3"]) == set()


def test_nothing_goes_where_a_version_does_not_say_what_it_uses(store: Store, settings: Settings) -> None:
    path = open_version("arith@v1").path / "trajectories.parquet"
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(VersionError, match=r"not as published.*First: malt rebuild arith@v1, or malt rm arith@v1"):
        collect_garbage(settings, 30 * DAY, delete=True)
    path.unlink()
    with pytest.raises(VersionError, match="not as published"):
        collect_garbage(settings, 30 * DAY)
    assert len(keys(store)) == 120


def test_nothing_goes_where_a_manifest_cannot_be_read(store: Store, settings: Settings) -> None:
    (settings.datasets_dir / "arith" / "v1" / "manifest.json").write_text("{")
    with pytest.raises(VersionError, match=r"manifest\.json: .*; nothing was removed\. .*malt rm arith@v1"):
        collect_garbage(settings, 30 * DAY, delete=True)
    assert len(keys(store)) == 120


@pytest.mark.parametrize("place", ["", "arith", "arith/v1"])
def test_nothing_goes_where_a_link_leads_nowhere(store: Store, settings: Settings, tmp_path: Path, place: str) -> None:
    folder = settings.datasets_dir / place
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "disk" / "away")
    with pytest.raises(VersionError, match=r"is a broken link, .*; nothing was removed"):
        collect_garbage(settings, 30 * DAY, delete=True)
    assert len(keys(store)) == 120


def test_nothing_goes_where_a_version_is_lost(store: Store, settings: Settings, tmp_path: Path) -> None:
    (settings.datasets_dir / "arith" / "v2").rename(tmp_path / "lost")
    with pytest.raises(VersionError, match="latest names v2, which is lost"):
        collect_garbage(settings, 30 * DAY, delete=True)
    assert len(keys(store)) == 120


def test_nothing_goes_while_a_version_is_being_made(store: Store, settings: Settings) -> None:
    staging = open_staging(settings.datasets_dir / "arith")
    with pytest.raises(VersionError, match=r"arith/.tmp-.* being made, or just made; run malt gc again"):
        collect_garbage(settings, 30 * DAY, delete=True)
    assert collect_garbage(settings, 30 * DAY).rows == 40
    assert len(keys(store)) == 120
    assert staging.is_dir()


def test_a_dead_writer_s_folder_is_removed(store: Store, settings: Settings) -> None:
    folder = settings.datasets_dir / "arith"
    left = folder / temporary_name(folder).name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")
    (left / "sft").mkdir(parents=True)
    (left / "sft" / "rows").write_bytes(b"x" * 1000)
    counted = collect_garbage(settings, 30 * DAY)
    assert (counted.folders, counted.folder_bytes) == (1, 1000)
    assert left.is_dir()
    assert collect_garbage(settings, 30 * DAY, delete=True) == counted
    assert not left.exists()


def test_a_postgresql_store_is_cleared_by_the_same_rules(settings: Settings, postgres: str) -> None:
    shared = Settings(data_dir=settings.data_dir, store_url=postgres)
    publish_questions(["q1"], settings.datasets_dir)
    with Store(postgres) as store:
        for question_id in ("q1", "q2"):
            store.write(samples_of(question_id))
        store.write([sample("young", "q2", created_at=time.time())])
        assert collect_garbage(shared, 30 * DAY, delete=True, also_in=[settings.datasets_dir]).rows == 40
        store.compact()
        assert keys(store) == {"young", *(row.key for row in samples_of("q1"))}


def test_without_versions_only_age_keeps_a_row(settings: Settings) -> None:
    with Store(settings.store) as store:
        store.write([sample("old", "q1"), sample("young", "q1", created_at=time.time())])
        assert collect_garbage(settings, 30 * DAY, delete=True).versions == 0
        assert keys(store) == {"young"}


def test_a_row_that_was_answered_during_the_collection_stays(store: Store) -> None:
    failed = replace(sample("k", "q9"), response=None, error="HTTP 500")
    store.write([failed])
    store.write([sample("k", "q9", created_at=time.time())])
    assert store.delete(["k"], OLD + 1) == 0
    assert keys(store, ["q9"]) == {"k"}


def test_more_questions_than_one_query_takes_are_all_looked_at(settings: Settings) -> None:
    with Store(settings.store) as store:
        store.write([sample(f"k{i}", f"q{i}") for i in range(1_300)])
        assert collect_garbage(settings, 30 * DAY, delete=True).rows == 1_300
        assert keys(store, [f"q{i}" for i in range(1_300)]) == set()


def test_a_compacted_store_is_smaller_and_whole(settings: Settings) -> None:
    path = settings.data_dir / "store.db"
    with Store(settings.store) as store:
        store.write([replace(sample(f"k{i}", "q1"), response="x" * 10_000) for i in range(200)])
    os.sync()
    before = path.stat().st_size
    assert exit_code(["gc", "--delete", "--compact"]) == 0
    assert path.stat().st_size < before / 10
    with Store(settings.store) as store:
        store.write([sample("k", "q1")])
        assert keys(store) == {"k"}


def test_the_command_is_a_dry_run_unless_told_to_delete(
    store: Store, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["gc"]) == 0
    said = capsys.readouterr().out
    assert "not used by any version:\n  40 rows of the store" in said
    assert "rows that the 2 versions use are kept; to remove the others: --delete" in said
    assert len(keys(store)) == 120
    assert exit_code(["gc", "--older-than", "60d", "--delete", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0
    assert exit_code(["gc", "--older-than", "12h", "--delete", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "deleted": True,
        "older_than_s": 43_200,
        "versions": 2,
        "rows": 40,
        "row_bytes": 440,
        "folders": 0,
        "folder_bytes": 0,
    }
    assert len(keys(store)) == 80


@pytest.mark.parametrize("age", ["soon", "30", "-1d", "1w", ""])
def test_an_invalid_age_is_refused(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["gc", "--older-than", age]) == 2
    assert "is no age; write 30d, 12h or 90m." in capsys.readouterr().err
