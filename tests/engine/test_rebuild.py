"""Rebuilding a version from the store: the same content, or the reasons for the differences."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.datasets.check.verify import verify
from malt.datasets.manifest import read_manifest
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.build import build
from malt.engine.rebuild import Rebuilt, Sources, rebuild
from malt.errors import InputError, PromptError, QuestionError, VersionError
from malt.llm.client.session import close_sessions
from malt.llm.store.samples import ASIDE, Store
from malt.prompts import find_set
from tests import mishaps, providers
from tests.asking import asked_directly
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

FAR_FUTURE = 1e12


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Spec with two sums and its own prompt set; answers that are not exactly the reference go to the judge."""
    monkeypatch.setenv("TEST_KEY", "key")
    prompts = shutil.copytree(find_set("general"), tmp_path / "prompts" / "own")
    judge = EvaluatorSpec(kind=("exact", "llm"), model="openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    declared = spec_of(provider, write_questions(tmp_path), samples=2)
    return declared.model_copy(update={"evaluator": judge, "prompts": str(prompts)})


def published(spec: RunSpec) -> DatasetVersion:
    """Try every request, then publish the version."""
    version = build(asked_directly(spec)).version
    assert version is not None
    close_sessions()
    return version


@pytest.fixture
def version(spec: RunSpec) -> DatasetVersion:
    return published(spec)


def forget(version: DatasetVersion, role: str) -> str:
    """Delete one sample of a role from the store; return the id of its question."""
    with Store(Settings().store) as store:
        row = next(row for rows in store.old_rows(FAR_FUTURE) for row in rows if row.role == role)
        assert store.delete([row.key], FAR_FUTURE) == 1
    return row.question_id


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_is_made_again_elsewhere_byte_for_byte(
    version: DatasetVersion, provider: ScriptedProvider, tmp_path: Path
) -> None:
    asked = provider.request_count
    rebuilt = rebuild(version, Settings(), tmp_path / "again")
    assert rebuilt == Rebuilt(version, tmp_path / "again", written=True)
    assert written(tmp_path / "again") == written(version.path)
    assert provider.request_count == asked


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "sft" / "verifier.parquet").unlink(),
        lambda folder: shutil.rmtree(folder / "dpo"),
        lambda folder: (folder / "trajectories.parquet").write_bytes(b"PAR1 no more"),
        lambda folder: (folder / "stranger.txt").write_text("x"),
        lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"],
    ],
    ids=["a file", "a folder", "bytes", "a stranger", "all but the manifest"],
)
def test_a_damaged_version_is_mended_in_its_place(version: DatasetVersion, damage: Callable[[Path], object]) -> None:
    whole = written(version.path)
    damage(version.path)
    assert verify(version) != []
    assert rebuild(version, Settings()).written
    assert written(version.path) == whole
    assert list(version.path.parent.glob(".tmp-*")) == []


def test_a_rebuilt_copy_does_not_pass_for_a_version(version: DatasetVersion) -> None:
    for place in (version.path / "again", version.path.with_name("v7")):
        with pytest.raises(InputError, match="name another folder"):
            rebuild(version, Settings(), place)


def test_an_intact_version_is_left_as_it_is(version: DatasetVersion) -> None:
    touched = (version.path / "manifest.json").stat()
    assert rebuild(version, Settings()) == Rebuilt(version, version.path, written=False)
    assert (version.path / "manifest.json").stat() == touched


def test_a_lost_version_comes_back_from_its_manifest(version: DatasetVersion) -> None:
    whole, manifest = written(version.path), (version.path / "manifest.json").read_bytes()
    shutil.rmtree(version.path)
    version.path.mkdir()
    (version.path / "manifest.json").write_bytes(manifest)
    assert rebuild(open_version("sums@v1"), Settings()).written
    assert written(version.path) == whole


def test_a_question_that_was_incomplete_stays_so(spec: RunSpec, provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.faults = mishaps.when(
        lambda asked: asked.model == "refiner-model" and "What is 1 + 10?" in asked.prompt, mishaps.context_overflow()
    )
    first = published(spec)
    provider.faults = None
    second = published(spec)
    assert (first.manifest.counts.complete, second.manifest.counts.complete) == (1, 2)
    for version in (first, second):
        assert rebuild(version, Settings(), tmp_path / f"again{version.number}").differences == ()
        assert written(tmp_path / f"again{version.number}") == written(version.path)


def test_a_changed_prompt_is_named(version: DatasetVersion, spec: RunSpec, tmp_path: Path) -> None:
    old = shutil.copytree(spec.prompts, tmp_path / "old")
    with (Path(spec.prompts) / "verifier" / "user.md").open("a") as prompt:
        prompt.write("Be kind.")
    rebuilt = rebuild(version, Settings(), tmp_path / "again")
    (difference,) = rebuilt.differences
    assert difference.startswith("prompts: verifier/user.md in ")
    assert not (tmp_path / "again").exists()
    assert rebuild(version, Settings(), tmp_path / "again", Sources(prompts=str(old))).written


def test_prompts_that_are_gone_say_how_to_name_others(version: DatasetVersion, spec: RunSpec) -> None:
    shutil.rmtree(spec.prompts)
    with pytest.raises(PromptError, match="--prompts says where the prompts of sums@v1 are now"):
        rebuild(version, Settings())


def test_the_question_file_is_needed_only_where_the_version_s_own_questions_are_damaged(
    version: DatasetVersion, spec: RunSpec, tmp_path: Path
) -> None:
    moved = Path(spec.questions.source).rename(tmp_path / "moved.jsonl")
    assert rebuild(version, Settings(), tmp_path / "again").written
    (version.path / "questions.parquet").unlink()
    with pytest.raises(QuestionError, match=r"no whole questions.parquet, and .*no such file.*--questions says where"):
        rebuild(version, Settings())
    assert rebuild(version, Settings(), None, Sources(questions=str(moved))).written
    assert verify(version) == []


def test_a_changed_question_file_is_reported(version: DatasetVersion, tmp_path: Path) -> None:
    other = write_questions(tmp_path, count=3)
    rebuilt = rebuild(version, Settings(), tmp_path / "again", Sources(questions=str(other)))
    assert rebuilt.path is None
    (difference,) = rebuilt.differences
    assert difference.startswith("questions: 2 were asked, and the file ")
    assert "has 3 now" in difference


@pytest.mark.parametrize("role", ["generator", "verifier", "refiner", "evaluator"])
def test_a_sample_missing_from_the_store_is_named(version: DatasetVersion, role: str, tmp_path: Path) -> None:
    question_id = forget(version, role)
    rebuilt = rebuild(version, Settings(), tmp_path / "again")
    assert rebuilt.path is None
    assert f"store: lacks the {role}'s answer to question '{question_id}'" in rebuilt.differences[0]
    assert not (tmp_path / "again").exists()
    assert list(tmp_path.glob(".tmp-*")) == []


def test_the_first_of_many_missing_samples_are_named_and_the_rest_counted(
    spec: RunSpec, tmp_path: Path, version: DatasetVersion
) -> None:
    with Store(Settings().store) as store:
        for rows in store.old_rows(FAR_FUTURE):
            store.delete([row.key for row in rows if row.role == "refiner"], FAR_FUTURE)
    told = rebuild(version, Settings(), tmp_path / "again").differences
    assert len(told) == 6
    assert told[-1] == "store: … and lacks 3 more"


def test_an_answer_that_was_set_aside_since_is_still_this_version_s(
    version: DatasetVersion, provider: ScriptedProvider, spec: RunSpec, tmp_path: Path
) -> None:
    """A refreshing rerun leaves the old answer in the store under a new key, and puts the new answer in its place."""
    question_ids = [*version.questions["question_id"]]
    with Store(Settings().store) as store:
        row = next(row for row in store.rows(question_ids).values() if row.role == "refiner")
        store.delete([row.key], FAR_FUTURE)
        store.write([replace(row, key=f"{row.key}{ASIDE}{row.created_at!r}")])
    provider.script = lambda asked, _: (
        providers.judgement(0.9) if asked.model == "judge" else "Another way. Final Answer: about 11"
    )
    second = published(spec)
    assert second.number == 2
    for each in (version, second):
        assert rebuild(each, Settings(), tmp_path / f"again{each.number}").differences == ()
        assert written(tmp_path / f"again{each.number}") == written(each.path)


def test_an_edited_manifest_is_reported_with_the_other_rows_it_would_give(version: DatasetVersion) -> None:
    path = version.path / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["config"]["credit"]["threshold"] = 0.99
    manifest["config"]["dataset"]["generator_dpo"] = True
    path.write_text(json.dumps(manifest))
    (version.path / "README.md").unlink()
    rebuilt = rebuild(open_version(version.path), Settings())
    assert rebuilt.path is None
    assert any(told.startswith("manifest.json: was edited") for told in rebuilt.differences)
    assert any("other rows" in told for told in rebuilt.differences)
    assert not (version.path / "README.md").exists()


def test_a_place_that_is_taken_is_refused_before_anything_is_read(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(VersionError, match="taken exists already; name a new or an empty folder"):
        rebuild(version, Settings(), tmp_path / "taken")
    assert rebuild(version, Settings(), tmp_path / "fresh").written


def test_the_command_prints_the_result(
    version: DatasetVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert exit_code(["rebuild", "sums@v1", "--out", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "version": "sums@v1",
        "content_sha256": version.manifest.content_sha256,
        "identical": True,
        "written": True,
        "path": str(again),
        "differences": [],
    }
    assert read_manifest(again).content_sha256 == version.manifest.content_sha256
    assert exit_code(["rebuild", "sums"]) == 0
    assert "sums@v1 is intact, and the store gives the same content" in capsys.readouterr().out
    forget(version, "refiner")
    assert exit_code(["rebuild", "sums"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "error: sums@v1 cannot be rebuilt; nothing was written")
    assert exit_code(["rebuild", "sums", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["identical"] is False
