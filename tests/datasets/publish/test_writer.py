"""Publishing: atomic, content-addressed, streamed."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from malt.config.roles import PLAYERS
from malt.config.spec import CreditSpec, RunSpec
from malt.datasets.check.verify import verify
from malt.datasets.publish.writer import VersionWriter
from malt.datasets.rows.tables import MEASURED, SCHEMAS
from malt.datasets.stats.counts import UsageCount
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.datasets.version.folders import STAGING_SECONDS
from malt.errors import NothingToPublish
from malt.llm.request import Completion
from malt.questions.screening import Exclusion, Screening
from malt.trees.credit import ValuedTree
from malt.trees.tree import Node
from tests.published import MIXED, PROVENANCE, mixed_shard, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import incomplete_tree_of, tree_of, valued


def with_completion(tree: ValuedTree, **changed: object) -> ValuedTree:
    """Return the same tree with changed fields in every completion."""
    nodes = {
        address: Node(address, node.prompt, replace(node.completion, **changed))  # type: ignore[arg-type]
        for address, node in tree.tree.nodes.items()
    }
    return replace(tree, tree=replace(tree.tree, nodes=nodes))


def shuffled(tree: ValuedTree, random: Random) -> ValuedTree:
    """Return the same tree with its nodes and grades in another order."""
    nodes, grades = list(tree.tree.nodes.items()), list(tree.grades.items())
    random.shuffle(nodes)
    random.shuffle(grades)
    return replace(tree, tree=replace(tree.tree, nodes=dict(nodes)), grades=dict(grades))


RECORDED = "7b4c1df7e160c36808016eb8079f7c88c159a7e0ec3787dcabf3f9f62ad2e752"


TRAINING_FILES: list[tuple[str, int, set[str]]] = [
    ("generator", 6, set()),
    ("verifier", 18, {"generated_solution"}),
    ("refiner", 52, {"generated_solution", "verification"}),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version of two questions, only to be read."""
    return publish_questions(["q1", "q2"], tmp_path_factory.mktemp("datasets"))


def unfinished(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name.startswith(".tmp-")]


def test_a_version_has_every_file_and_no_other(two: DatasetVersion) -> None:
    files = {path.relative_to(two.path).as_posix() for path in two.path.rglob("*") if path.is_file()}
    training = {f"{role}_training.json" for role in PLAYERS}
    assert files == {*SCHEMAS, *training, "README.md", "report.html", "manifest.json"}
    assert two.manifest.files.keys() == files - {"manifest.json"}
    assert unfinished(two.path.parent) == []


def test_latest_names_the_newest_version_by_a_relative_link(tmp_path: Path) -> None:
    publish_questions(["q1"], tmp_path)
    publish_questions(["q2"], tmp_path)
    assert (tmp_path / "arith" / "latest").readlink() == Path("v2")


def test_equal_content_makes_no_new_version(tmp_path: Path) -> None:
    first = publish_questions(["q1", "q2"], tmp_path)
    later = replace(PROVENANCE, created_at=datetime(2027, 1, 1, tzinfo=UTC))
    second = publish([mixed_tree("q1"), mixed_tree("q2")], spec_of(), later, tmp_path)
    assert (first.created, second.created) == (True, False)
    assert second.path == first.path
    assert sorted(entry.name for entry in (tmp_path / "arith").glob("[!.]*")) == ["latest", "v1"]


def test_another_threshold_makes_another_version_that_names_its_parent(tmp_path: Path) -> None:
    first = publish([valued(tree_of("q1"), MIXED)], spec_of(), PROVENANCE, tmp_path)
    second = publish([valued(tree_of("q1"), MIXED, CreditSpec(threshold=0.7))], spec_of(), PROVENANCE, tmp_path)
    assert second.number == 2
    assert second.manifest.parent is not None
    assert second.manifest.parent.content_sha256 == first.manifest.content_sha256


def test_the_order_in_which_completions_arrived_does_not_show(tmp_path: Path) -> None:
    scores = [leaf / 7 % 1 for leaf in range(27)]
    trees = [valued(tree_of(question_id), scores) for question_id in ("q1", "q2")]
    first = publish(trees, spec_of(), PROVENANCE, tmp_path / "a")
    second = publish([shuffled(tree, Random(5)) for tree in trees], spec_of(), PROVENANCE, tmp_path / "b")
    assert first.manifest.content_sha256 == second.manifest.content_sha256


@pytest.mark.parametrize("column", sorted(MEASURED))
def test_measurements_are_recorded_but_are_not_content(tmp_path: Path, column: str) -> None:
    first = publish_questions(["q1"], tmp_path)
    measured = "77" if column == "run" else 77
    slower = with_completion(mixed_tree("q1"), **{column: measured})
    second = publish([slower], spec_of(), PROVENANCE, tmp_path / "elsewhere")
    assert first.manifest.content_sha256 == second.manifest.content_sha256
    assert set(second.trajectories[column]) == {measured}


@pytest.mark.parametrize("changed", [{"text": "else"}, {"model": "else"}, {"reasoning": "hm"}, {"key": "else"}])
def test_a_model_s_reply_is_content(tmp_path: Path, changed: dict[str, str]) -> None:
    publish_questions(["q1"], tmp_path)
    assert publish([with_completion(mixed_tree("q1"), **changed)], spec_of(), PROVENANCE, tmp_path).number == 2


def test_a_recorded_run_keeps_its_digest(two: DatasetVersion) -> None:
    """If this digest changes, published versions can no longer be rebuilt to their own: note it in the CHANGELOG."""
    assert two.manifest.content_sha256 == RECORDED


def test_an_incomplete_tree_gives_no_rows_but_a_line_and_its_reason(tmp_path: Path) -> None:
    trees = [mixed_tree("q1"), valued(incomplete_tree_of("q2"), {})]
    version = publish(trees, spec_of(), PROVENANCE, tmp_path)
    assert dict(zip(version.questions["question_id"], version.questions["complete"], strict=True)) == {
        "q1": True,
        "q2": False,
    }
    assert set(version.trajectories["question_id"]) == {"q1"}
    assert version.manifest.counts.questions == 2
    assert version.manifest.counts.complete == 1
    (failure,) = version.manifest.failures
    assert (failure.question_id, failure.address, failure.role) == ("q2", "", "generator")
    assert failure.reason == "HTTP 500 from the provider, 5 attempts"


def test_a_question_s_rows_are_all_in_one_split(tmp_path: Path) -> None:
    spec = spec_of(validation=0.5)
    version = publish((mixed_tree(f"q{number}") for number in range(8)), spec, PROVENANCE, tmp_path)
    whole = publish_questions([f"q{number}" for number in range(8)], tmp_path, name="whole")
    split = dict(zip(version.questions["question_id"], version.questions["split"], strict=True))
    assert set(split.values()) == {"train", "validation"}
    for read, read_whole in [(version.sft, whole.sft), (version.dpo, whole.dpo), (version.kto, whole.kto)]:
        train, validation = read("refiner"), read("refiner", "validation")
        assert {split[each] for each in train["question_id"]} == {"train"}
        assert {split[each] for each in validation["question_id"]} == {"validation"}
        assert {*train["row_id"], *validation["row_id"]} == set(read_whole("refiner")["row_id"])


def test_a_question_that_is_screened_out_has_a_tree_but_no_rows(tmp_path: Path) -> None:
    screening = Screening(excluded={"q2": Exclusion("decontaminate", "test.jsonl:3")})
    trees = [mixed_tree("q1"), mixed_tree("q2")]
    version = publish(trees, spec_of(), replace(PROVENANCE, screening=screening), tmp_path)
    assert set(version.trajectories["question_id"]) == {"q1", "q2"}
    assert {each for role in PLAYERS for each in version.kto(role)["question_id"]} == {"q1"}
    assert list(version.questions["excluded_by"].fillna("nothing")) == ["nothing", "test.jsonl:3"]
    assert version.manifest.screening.excluded == {"decontaminate": 1}
    for kinds in version.manifest.selection.values():
        for rows in kinds.values():
            assert rows.candidates == rows.kept + sum(rows.dropped.values())
            assert rows.dropped["decontaminate"] * 2 == rows.candidates


def test_a_tree_that_became_complete_makes_a_new_version(tmp_path: Path) -> None:
    publish([mixed_tree("q1"), valued(incomplete_tree_of("q2"), {})], spec_of(), PROVENANCE, tmp_path)
    assert publish_questions(["q1", "q2"], tmp_path).number == 2


def test_without_a_complete_tree_nothing_is_published_and_latest_stays(tmp_path: Path) -> None:
    publish_questions(["q1"], tmp_path)
    with pytest.raises(NothingToPublish, match="none of 1 questions has a whole tree"):
        publish([valued(incomplete_tree_of("q1"), {})], spec_of(), PROVENANCE, tmp_path)
    assert open_version("arith", tmp_path).number == 1
    assert unfinished(tmp_path / "arith") == []


def test_a_failure_while_trees_come_leaves_no_trace(tmp_path: Path) -> None:
    def trees() -> Iterator[ValuedTree]:
        yield mixed_tree("q1")
        raise OSError("the store went away")

    with pytest.raises(OSError, match="the store went away"):
        publish(trees(), spec_of(), PROVENANCE, tmp_path)
    assert list((tmp_path / "arith").iterdir()) == []


def test_generator_pairs_are_written_only_when_switched_on(tmp_path: Path) -> None:
    off = publish_questions(["q1"], tmp_path)
    on = publish([mixed_tree("q1")], spec_of(generator_dpo=True), PROVENANCE, tmp_path)
    assert (len(off.dpo("generator")), len(on.dpo("generator"))) == (0, 2)
    assert list(off.dpo("generator").columns) == list(on.dpo("generator").columns)


@pytest.mark.parametrize(("role", "count", "added"), TRAINING_FILES)
def test_the_training_files_follow_the_given_schema(
    two: DatasetVersion, role: str, count: int, added: set[str]
) -> None:
    file = json.loads((two.path / f"{role}_training.json").read_bytes())
    metadata, examples = file["metadata"], file["examples"]
    assert (metadata["timestamp"], metadata["model"]) == ("2026-01-02T00:00:00+00:00", "embedded")
    assert metadata["total_examples"] == len(examples) == count
    for example in examples:
        assert example.keys() == {"question", "solution", "score", "evaluation"} | added
        assert example["evaluation"].keys() == {"correctness_score", "reasoning_score", "explanation", "key_matches"}


def test_the_manifest_names_every_input_and_counts_everything(two: DatasetVersion) -> None:
    manifest = two.manifest
    assert manifest.config == spec_of().as_config()
    assert manifest.prompts == PROVENANCE.prompts
    assert manifest.questions.source == "questions.jsonl"
    assert manifest.counts.nodes == {"generator": 6, "verifier": 18, "refiner": 54}
    assert manifest.counts.outcomes == {"right": 26, "unknown": 2, "wrong": 26}
    assert manifest.counts.labels["refiner"].model_dump() == {"right": 26, "wrong": 26, "none": 2}
    assert manifest.tokens["verifier"].prompt_tokens == 18 * 20
    assert manifest.cost["refiner"].cost_usd == pytest.approx(0.054)


def test_the_digest_of_the_questions_does_not_depend_on_what_became_of_them(tmp_path: Path) -> None:
    whole = publish_questions(["q1", "q2"], tmp_path).manifest
    short = publish([mixed_tree("q1"), valued(incomplete_tree_of("q2"), {})], spec_of(), PROVENANCE, tmp_path).manifest
    assert whole.questions.sha256 == short.questions.sha256
    assert whole.content_sha256 != short.content_sha256


def test_the_manifest_counts_the_outcome_of_every_candidate(two: DatasetVersion) -> None:
    manifest = two.manifest
    for role in PLAYERS:
        for kind, counts in manifest.selection[role].items():
            assert counts.candidates == counts.kept + sum(counts.dropped.values())
            assert counts.kept == manifest.files[f"{kind}/{role}.parquet"].rows
    assert manifest.selection["generator"]["dpo"].dropped["generator_dpo"] == 4


def test_the_manifest_has_the_diagnostics(two: DatasetVersion) -> None:
    diagnostics = two.manifest.diagnostics
    assert diagnostics.graders == ()
    leaves = diagnostics.leaves
    assert (leaves.right, leaves.wrong, leaves.unknown, leaves.percent) == (26, 26, 2, 50.0)
    assert diagnostics.graded_by == {"llm": 52}
    assert diagnostics.questions.mixed.model_dump() == {"count": 2, "percent": 100.0}


def test_the_ledger_says_which_run_paid_for_what(tmp_path: Path) -> None:
    first, later = mixed_tree("q1"), with_completion(mixed_tree("q2"), run="second", model="dearer", cost_usd=None)
    judge = UsageCount()
    judge.add(Completion("k", "{}", None, "stop", "judge", prompt_tokens=5, completion_tokens=5, cost_usd=0.5))
    manifest = publish([first, later], spec_of(), PROVENANCE, tmp_path, judge).manifest
    assert [(entry.run, entry.role, entry.model) for entry in manifest.ledger] == [
        *(("", role, "served-model") for role in PLAYERS),
        ("", "evaluator", "judge"),
        *(("second", role, "dearer") for role in PLAYERS),
    ]
    assert [entry.cost.cost_usd for entry in manifest.ledger] == [0.003, 0.009, 0.027, 0.5, None, None, None]
    for role in PLAYERS:
        entries = [entry for entry in manifest.ledger if entry.role == role]
        assert sum(entry.tokens.completions for entry in entries) == manifest.tokens[role].completions


def test_an_unknown_cost_is_never_zero(tmp_path: Path) -> None:
    version = publish([with_completion(mixed_tree("q1"), cost_usd=None)], spec_of(), PROVENANCE, tmp_path)
    assert version.manifest.cost["verifier"].cost_usd is None
    assert version.manifest.cost["verifier"].known == 0
    assert version.manifest.total_cost_usd is None


def test_the_total_cost_needs_the_judge_s_where_a_judge_was_asked(tmp_path: Path) -> None:
    judge = UsageCount()
    judge.add(Completion("k", "{}", None, "stop", "judge", prompt_tokens=5, completion_tokens=5, cost_usd=0.5))
    told = publish([mixed_tree("q1")], spec_of(), PROVENANCE, tmp_path / "told", judge)
    assert told.manifest.total_cost_usd == pytest.approx(0.539)
    assert told.manifest.tokens["evaluator"].completions == 1
    assert publish_questions(["q1"], tmp_path).manifest.total_cost_usd is None


def test_half_characters_in_a_model_s_text_are_replaced_not_fatal(tmp_path: Path) -> None:
    version = publish([with_completion(mixed_tree("q1"), text="so \ud83d 4")], spec_of(), PROVENANCE, tmp_path)
    assert set(version.trajectories["text"]) == {"so \N{REPLACEMENT CHARACTER} 4"}
    first = json.loads((version.path / "generator_training.json").read_bytes())["examples"][0]
    assert first["solution"] == "so \N{REPLACEMENT CHARACTER} 4"


def test_half_characters_in_a_provider_s_words_are_replaced_not_fatal(tmp_path: Path) -> None:
    tree = incomplete_tree_of("q2")
    broken = replace(tree, failures=(tree.failures[0]._replace(reason="HTTP 500: \ud83d"),))
    version = publish([mixed_tree("q1"), valued(broken, {})], spec_of(), PROVENANCE, tmp_path)
    assert version.manifest.failures[0].reason == "HTTP 500: \N{REPLACEMENT CHARACTER}"


def publish_at_once(datasets_dir: Path, question_ids: list[str]) -> list[DatasetVersion]:
    """Publish each question as a version of its own; all writers are ready before the first one publishes."""
    together = threading.Barrier(len(question_ids))

    def run(question_id: str) -> DatasetVersion:
        with VersionWriter(spec_of(), PROVENANCE, datasets_dir / "arith") as writer:
            writer.add(mixed_shard(question_id))
            together.wait()
            return writer.publish()

    with ThreadPoolExecutor(len(question_ids)) as pool:
        return list(pool.map(run, question_ids))


def test_publishers_at_once_get_different_numbers_and_latest_names_the_last(tmp_path: Path) -> None:
    made = publish_at_once(tmp_path, [f"q{number}" for number in range(6)])
    assert sorted(version.number for version in made) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "arith" / "latest").readlink() == Path("v6")
    assert {version.manifest.parent.version for version in made if version.manifest.parent} == {1, 2, 3, 4, 5}


def test_publishers_of_one_content_at_once_share_one_version(tmp_path: Path) -> None:
    with VersionWriter(spec_of(), PROVENANCE, tmp_path / "arith") as slow:
        slow.add(mixed_shard("q1"))
        fast = publish_questions(["q1"], tmp_path)
        assert slow.publish().path == fast.path
    assert [entry.name for entry in (tmp_path / "arith").glob("v*")] == ["v1"]


def test_publishers_of_one_content_all_at_once_make_one_version(tmp_path: Path) -> None:
    made = publish_at_once(tmp_path, ["q1"] * 6)
    assert {version.path for version in made} == {tmp_path / "arith" / "v1"}
    assert sorted(version.created for version in made) == [False] * 5 + [True]


KILLED = """
import os, signal, sys
from pathlib import Path
from malt.datasets.publish.writer import VersionWriter
from tests.published import PROVENANCE, mixed_shard, spec_of
with VersionWriter(spec_of(), PROVENANCE, Path(sys.argv[1]) / "arith") as writer:
    writer.add(mixed_shard("q2"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_publisher_leaves_the_old_version_and_the_next_one_clears_up(tmp_path: Path) -> None:
    publish_questions(["q1"], tmp_path)
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert len(unfinished(tmp_path / "arith")) == 1
    assert open_version("arith", tmp_path).number == 1
    assert publish_questions(["q3"], tmp_path).number == 2
    assert unfinished(tmp_path / "arith") == []


def test_a_living_publisher_s_folder_is_left_alone(tmp_path: Path) -> None:
    with VersionWriter(spec_of(), PROVENANCE, tmp_path / "arith") as slow:
        slow.add(mixed_shard("q1"))
        publish_questions(["q2"], tmp_path)
        assert slow.publish().number == 2


@pytest.mark.parametrize(("age", "stays"), [(STAGING_SECONDS / 2, True), (STAGING_SECONDS * 2, False)])
def test_another_machine_s_unfinished_folder_is_cleared_after_a_day(tmp_path: Path, age: float, stays: bool) -> None:
    left = tmp_path / "arith" / f".tmp-not-{socket.gethostname()}-1-0a0a0a0a"
    left.mkdir(parents=True)
    then = left.stat().st_mtime - age
    os.utime(left, (then, then))
    publish_questions(["q1"], tmp_path)
    assert left.exists() == stays


def test_a_damaged_newest_version_does_not_keep_the_next_one_from_being_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (publish_questions(["q1"], tmp_path).path / "manifest.json").write_text("{")
    version = publish_questions(["q1"], tmp_path)
    assert (version.number, version.created, version.manifest.parent) == (2, True, None)
    assert "arith cannot be read" in caplog.text


def test_the_address_of_the_questions_is_published_without_its_credentials(tmp_path: Path) -> None:
    config = spec_of().as_config()
    secret = "https://host.example/q.jsonl?token=t0ken&X-Amz-Signature=s1gn"
    config["questions"]["source"], config["dataset"]["decontaminate"] = secret, [secret]
    config["evaluate"] = {"questions": {"source": secret}}
    version = publish([mixed_tree("q1")], RunSpec.model_validate(config), PROVENANCE, tmp_path)
    written = b"".join(path.read_bytes() for path in version.path.rglob("*") if path.is_file())
    assert b"https://host.example/q.jsonl" in written
    assert not any(part in written for part in (b"t0ken", b"s1gn"))
    assert verify(version) == []
