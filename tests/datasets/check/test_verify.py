"""Verification finds every change to a published version, and names it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt.config.spec import CreditSpec
from malt.datasets.check.verify import digest_rows, verify
from malt.datasets.manifest import Manifest, content_digest, write_manifest
from malt.datasets.rows.files import RowsWritten
from malt.datasets.rows.tables import SCHEMAS
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.datasets.version.folders import describe_file
from malt.grading.grades import Evaluation, Grade, Outcome
from malt.llm.request import FinishReason
from malt.questions.screening import Exclusion, Screening, ScreeningCounts
from malt.trees.credit import ValuedTree, value_tree
from tests.published import PROVENANCE, asking_for, copied, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import diagnosed_trees, grade_of, incomplete_tree_of, leaf_addresses, tree_of, valued

Rows = list[dict[str, Any]]

SWITCHES: list[dict[str, bool | float | str]] = [
    {},
    {"generator_dpo": True, "min_margin": 0.4, "balance": "labels"},
    {"min_confidence": 0.8, "max_pairs_per_question": 1},
    {"validation": 0.9, "repeats": "drop", "max_length": 14, "max_examples_per_question": 1, "flawed_texts": "keep"},
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    publish_questions(["q1", "q2", "q3"], folder)
    return folder


@pytest.fixture
def version(published: Path, tmp_path: Path) -> DatasetVersion:
    return copied(published, tmp_path)


def test_an_unreadable_folder_is_not_reported_as_damage(version: DatasetVersion) -> None:
    is_root = os.geteuid() == 0
    if is_root and not shutil.which("setpriv"):
        pytest.skip("root reads everything")
    override = "-dac_override,-dac_read_search"
    as_others = ["setpriv", f"--bounding-set={override}", f"--inh-caps={override}"] if is_root else []
    malt = [*as_others, sys.executable, "-c", "from malt.cli.main import main; main()"]
    (version.path / "sft").chmod(0)
    try:
        said = subprocess.run([*malt, "verify", str(version.path)], capture_output=True, text=True)
    finally:
        (version.path / "sft").chmod(0o700)
    assert (said.returncode, said.stdout) == (2, "")
    assert "sft could not be read (Permission denied), so the version cannot be verified" in said.stderr


def rewrite(version: DatasetVersion, file: str, change: Callable[[Rows], object]) -> None:
    """Change the rows of a Parquet file; its schema stays."""
    rows = pq.read_table(version.path / file).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[file]), version.path / file)


def forge_manifest(version: DatasetVersion) -> DatasetVersion:
    """Make the manifest match the changed files, its own digest too."""
    files = {
        file: describe_file(
            version.path / file, RowsWritten(*digest_rows(version.path, file)) if entry.rows_sha256 else None
        )
        for file, entry in version.manifest.files.items()
    }
    content = {"files": files, "content_sha256": content_digest(files)}
    write_manifest(version.manifest.model_copy(update=content), version.path)
    return open_version(version.path)


def set_value(rows: Rows) -> None:
    rows[0]["value"] = 0.875


def swap_pair(rows: Rows) -> None:
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]


def test_a_version_as_published_verifies(version: DatasetVersion) -> None:
    assert verify(version) == []


@settings(max_examples=10, deadline=None)
@given(diagnosed_trees(), st.sampled_from(SWITCHES))
def test_every_published_version_verifies(
    tmp_path_factory: pytest.TempPathFactory, tree: ValuedTree, switched: dict[str, bool | float | str]
) -> None:
    spec = spec_of(**switched).model_copy(update={"credit": CreditSpec(threshold=tree.threshold)})
    folder = tmp_path_factory.mktemp("datasets")
    assert verify(publish([tree], asking_for(spec, tree.tree), PROVENANCE, folder)) == []


def test_a_version_with_incomplete_trees_holds(tmp_path: Path) -> None:
    trees = [valued(incomplete_tree_of("q0"), {}), mixed_tree("q1"), valued(incomplete_tree_of("q2"), {})]
    assert verify(publish(trees, spec_of(), PROVENANCE, tmp_path)) == []


def test_a_version_whose_inner_nodes_were_judged_too_holds(tmp_path: Path) -> None:
    tree = mixed_tree("q1")
    inner = {address: grade_of(0.25) for address in tree.tree.nodes if not address.is_leaf}
    judged = replace(tree, grades={**inner, **tree.grades})
    version = publish([judged], spec_of(), PROVENANCE, tmp_path)
    assert verify(version) == []
    assert set(version.trajectories.query("role == 'verifier'")["correctness_score"]) == {0.25}


def test_a_version_with_truncated_leaves_left_out_holds(tmp_path: Path) -> None:
    first, *others = leaf_addresses()
    cut = Grade(Outcome.TRUNCATED, None, "llm", Evaluation(0.0, 0.0))
    credit = CreditSpec(truncated="unknown")
    grades = {first: cut, **{leaf: grade_of(1) for leaf in others}}
    tree = value_tree(tree_of("q1", finish_reasons={first: FinishReason.LENGTH}), grades, credit)
    version = publish([tree], spec_of().model_copy(update={"credit": credit}), PROVENANCE, tmp_path)
    assert verify(version) == []
    assert version.trajectories["reward"].isna().sum() == 13


def test_a_changed_byte_is_found(version: DatasetVersion) -> None:
    path = version.path / "sft" / "verifier.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert "sft/verifier.parquet: its bytes changed since it was published" in verify(version)


def test_a_file_that_is_no_longer_readable_is_named(version: DatasetVersion) -> None:
    (version.path / "trajectories.parquet").write_bytes(b"nothing of the kind")
    problems = verify(version)
    assert any(line.startswith("trajectories.parquet: cannot be read (") for line in problems)


def test_a_problem_is_one_line_whatever_the_library_says(version: DatasetVersion) -> None:
    path = version.path / "questions.parquet"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # in the header of the first page: Arrow's message has several lines
    path.write_bytes(content)
    problems = verify(version)
    assert any("page header failed. )" in problem for problem in problems)
    assert not any("\n" in problem for problem in problems)


def test_a_missing_file_is_found(version: DatasetVersion) -> None:
    (version.path / "dpo" / "refiner.parquet").unlink()
    assert verify(version) == ["dpo/refiner.parquet: is missing"]


def test_a_missing_file_is_found_even_when_the_manifest_forgot_it(version: DatasetVersion) -> None:
    (version.path / "dpo" / "refiner.parquet").unlink()
    files = {file: entry for file, entry in version.manifest.files.items() if file != "dpo/refiner.parquet"}
    content = {"files": files, "content_sha256": content_digest(files)}
    write_manifest(version.manifest.model_copy(update=content), version.path)
    assert verify(open_version(version.path)) == ["dpo/refiner.parquet: is missing"]


def test_a_file_that_does_not_belong_is_found(version: DatasetVersion) -> None:
    (version.path / "sft" / "notes.txt").write_text("mine")
    assert verify(version) == ["sft/notes.txt: is not in the manifest"]


@pytest.mark.parametrize(
    "place", [lambda path: path.symlink_to("/etc"), lambda path: path.symlink_to("nowhere"), os.mkfifo]
)
def test_an_entry_that_is_no_plain_file_is_reported(version: DatasetVersion, place: Callable[[Path], None]) -> None:
    place(version.path / "more")
    assert verify(version) == ["more: is no plain file; a version holds only plain files"]


def test_a_file_that_became_a_link_is_found(version: DatasetVersion, tmp_path: Path) -> None:
    (version.path / "README.md").rename(tmp_path / "moved.md")
    (version.path / "README.md").symlink_to(tmp_path / "moved.md")
    assert "README.md: is no plain file; a version holds only plain files" in verify(version)


def test_questions_that_were_not_asked_are_found_though_every_digest_matches(version: DatasetVersion) -> None:
    rewrite(version, "questions.parquet", lambda rows: rows[0].update(ground_truth="5"))
    told = verify(forge_manifest(version))
    assert told == ["questions.parquet: its questions are not those that the manifest says were asked"]


SCREENED = Screening(excluded={"q2": Exclusion("decontaminate", "test.jsonl:3")})


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish q1 to q6: one is in a test set, some are in the validation split."""
    folder, provenance = tmp_path_factory.mktemp("datasets"), replace(PROVENANCE, screening=SCREENED)
    publish((mixed_tree(f"q{number}") for number in range(1, 7)), spec_of(validation=0.5), provenance, folder)
    return folder


@pytest.fixture
def screened_version(screened: Path, tmp_path: Path) -> DatasetVersion:
    return copied(screened, tmp_path)


def test_a_version_with_splits_and_screened_questions_holds(screened_version: DatasetVersion) -> None:
    assert verify(screened_version) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[0].update(split="test"), "question 'q1' does not belong in split 'test'"),
        (lambda rows: rows[1].update(excluded=None, excluded_by=None), "is missing"),
        (
            lambda rows: rows[2].update(excluded="duplicate_questions", excluded_by="q1"),
            "question 'q3': its exclusion differs from the screening",
        ),
    ],
)
def test_a_question_moved_or_let_through_is_found_though_every_digest_matches(
    screened_version: DatasetVersion, change: Callable[[Rows], object], told: str
) -> None:
    rewrite(screened_version, "questions.parquet", change)
    assert any(told in line for line in verify(forge_manifest(screened_version)))


def test_rows_moved_to_the_other_split_are_found_though_every_digest_matches(screened_version: DatasetVersion) -> None:
    files = ("kto/refiner.parquet", "kto/refiner.validation.parquet")
    train, validation = (pq.read_table(screened_version.path / file) for file in files)
    for file, table in zip(files, (validation, train), strict=True):
        pq.write_table(table, screened_version.path / file)
    problems = verify(forge_manifest(screened_version))
    assert {line.split(":")[0] for line in problems} == set(files)


def test_lengths_that_are_not_the_texts_own_are_found_though_every_digest_matches(version: DatasetVersion) -> None:
    rewrite(version, "trajectories.parquet", lambda rows: rows[0].update(text_length=7000))
    assert "trajectories.parquet: node 0 of question 'q1': wrong length" in verify(forge_manifest(version))


@pytest.mark.parametrize(
    ("field", "forged", "told"),
    [
        ("name", lambda _: "other", "says dataset 'other', but its config names another dataset"),
        ("counts", lambda counts: counts.model_copy(update={"complete": 2}), "its counts are not those of the rows"),
        (
            "diagnostics",
            lambda found: found.model_copy(update={"graded_by": {"exact": 78}}),
            "its diagnostics are not those of the rows",
        ),
        ("selection", lambda _: {}, "its counts of what was left out are not those of the rows"),
        ("lengths", lambda _: {}, "its lengths are not those of the rows"),
        ("length_bias", lambda _: {}, "its lengths are not those of the rows"),
        (
            "screening",
            lambda _: ScreeningCounts(excluded={"decontaminate": 1}, test_sets=()),
            "its counts of questions that give no rows are not those of the rows",
        ),
    ],
)
def test_a_manifest_that_says_otherwise_than_its_rows_is_found(
    version: DatasetVersion, field: str, forged: Callable[[Any], object], told: str
) -> None:
    update = {field: forged(getattr(version.manifest, field))}
    write_manifest(version.manifest.model_copy(update=update), version.path)
    assert verify(open_version(version.path)) == [f"manifest.json: {told}"]


def test_rows_out_of_order_are_found_though_every_digest_matches(version: DatasetVersion) -> None:
    rewrite(version, "kto/refiner.parquet", lambda rows: rows.insert(0, rows.pop(1)))
    assert verify(forge_manifest(version)) == ["kto/refiner.parquet: the rows of question 'q1' are out of order"]


def test_a_tree_of_another_shape_than_declared_is_found(version: DatasetVersion) -> None:
    config = {**version.manifest.config, "roles": {"verifier": {"samples": 2}}}
    write_manifest(version.manifest.model_copy(update={"config": config}), version.path)
    assert "trajectories.parquet: question 'q1': its nodes are not those of its config" in verify(
        open_version(version.path)
    )


def test_a_number_that_json_does_not_have_is_found_in_a_manifest(version: DatasetVersion) -> None:
    path = version.path / "manifest.json"
    path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": NaN'))
    assert any("was edited" in line for line in verify(version))


def test_an_edited_manifest_is_found(version: DatasetVersion) -> None:
    path = version.path / "manifest.json"
    path.write_text(path.read_text().replace('"cost_usd": 0.009', '"cost_usd": 0.001'))
    assert verify(open_version(version.path)) == [
        "manifest.json: was edited; it no longer has the digest it was sealed with",
        "manifest.json: the generator's tokens or cost are not the sums of the rows",
        "manifest.json: its ledger does not match the sums of the rows",
    ]


def test_a_renumbered_folder_is_found(version: DatasetVersion) -> None:
    moved = version.path.rename(version.path.with_name("v7"))
    assert verify(open_version(moved)) == ["manifest.json: says version 1, but its folder is v7"]


FORGERIES: list[tuple[str, Callable[[Rows], object], str]] = [
    ("trajectories.parquet", set_value, "node 0 of question 'q1': value is 0.875, but recomputed 0.55"),
    ("trajectories.parquet", lambda rows: rows[0].update(label=False), "node 0 of question 'q1': label is False"),
    ("trajectories.parquet", lambda rows: rows[2].update(reward=0.0), "node 0 of question 'q1': value is 0.55"),
    ("trajectories.parquet", lambda rows: rows[0].update(value_low=0.5), "node 0 of question 'q1': value_low is 0.5"),
    ("trajectories.parquet", lambda rows: rows.pop(2), "node 0 of question 'q1': value is 0.55"),
    ("trajectories.parquet", lambda rows: rows.append(rows[0]), "holds rows of question 'q1', out of order"),
    ("trajectories.parquet", lambda rows: rows[0].update(outcome="good"), "question 'q1' cannot be read"),
    ("trajectories.parquet", lambda rows: rows[0].update(text=None), "question 'q1' cannot be read"),
    ("trajectories.parquet", lambda rows: rows[0].update(node_id="a.b"), "question 'q1' cannot be read"),
    ("sft/verifier.parquet", set_value, "sft-verifier/q1/0.0: value is 0.875, but recomputed 0.66"),
    ("sft/verifier.parquet", lambda rows: rows.pop(0), "sft-verifier/q1/0.0 is missing"),
    ("sft/verifier.parquet", lambda rows: rows.insert(0, rows[0]), "holds a row of question 'q1' twice"),
    ("sft/refiner.parquet", lambda rows: rows[0]["completion"][0].update(content="4"), "completion is"),
    ("sft/refiner.parquet", lambda rows: rows[0]["prompt"][1].update(content="4"), "sft-refiner/q1/0.0.0: prompt is"),
    ("kto/refiner.parquet", lambda rows: rows[1].update(label=True), "kto-refiner/q1/0.0.1: label is True"),
    ("kto/refiner.parquet", lambda rows: rows[1]["prompt"][1].update(content="4"), "kto-refiner/q1/0.0.1: prompt is"),
    ("dpo/verifier.parquet", swap_pair, "chosen is"),
    (
        "dpo/verifier.parquet",
        lambda rows: rows[0].update(confidence=0.5),
        "confidence is 0.5, but recomputed 0.9",
    ),
    ("dpo/verifier.parquet", lambda rows: rows[0].update(row_id="dpo-verifier/q1/0.1-0.0"), "should not be there"),
]


@pytest.mark.parametrize(("file", "change", "told"), FORGERIES)
def test_rows_that_do_not_follow_from_the_leaves_are_found_though_every_digest_matches(
    version: DatasetVersion, file: str, change: Callable[[Rows], object], told: str
) -> None:
    rewrite(version, file, change)
    problems = verify(forge_manifest(version))
    assert any(line.startswith(f"{file}: ") and told in line for line in problems), problems


def test_rows_changed_without_the_manifest_are_found_by_their_digest(version: DatasetVersion) -> None:
    rewrite(version, "kto/refiner.parquet", lambda rows: rows[1].update(label=True))
    assert "kto/refiner.parquet: its rows changed since it was published (78 then, 78 now)" in verify(version)


def test_an_edited_training_file_is_found_though_every_digest_matches(version: DatasetVersion) -> None:
    path = version.path / "verifier_training.json"
    path.write_text(path.read_text().replace("verifier 0.1 on q2", "verifier 9.9 on q2", 1))
    problems = verify(forge_manifest(version))
    assert problems == ["verifier_training.json: an example of question 'q2' does not match its node"]


SMUGGLED = [
    pytest.param(lambda text: text.replace('\n{"question"', '\n {"question": "more"},\n{"question"', 1), id="a line"),
    pytest.param(
        lambda text: text.replace('"examples": [', '"examples": [{"question": "more"},', 1), id="the first line"
    ),
    pytest.param(lambda text: text.replace('"total_examples": 27', '"total_examples": 99', 1), id="their number"),
    pytest.param(lambda text: text.replace("]}\n", '], "examples": []}\n', 1), id="the last line"),
]


@pytest.mark.parametrize("change", SMUGGLED)
def test_examples_smuggled_into_a_training_file_are_found_though_every_digest_matches(
    version: DatasetVersion, change: Callable[[str], str]
) -> None:
    path = version.path / "verifier_training.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with suppress(ValueError):
        version = forge_manifest(version)
    assert any(line.startswith("verifier_training.json: ") for line in verify(version))


@pytest.mark.parametrize("page", ["README.md", "report.html"])
def test_a_forged_page_is_found_though_every_digest_matches(version: DatasetVersion, page: str) -> None:
    (version.path / page).write_text("<script>alert(1)</script>")
    assert verify(forge_manifest(version)) == [f"{page}: differs from the page that the other files give"]


def test_a_file_that_does_not_belong_is_found_though_the_manifest_names_it(version: DatasetVersion) -> None:
    (version.path / "sft" / "more.parquet").write_bytes(b"more")
    files = {**version.manifest.files, "sft/more.parquet": describe_file(version.path / "sft" / "more.parquet", None)}
    write_manifest(version.manifest.model_copy(update={"files": files}), version.path)
    told = "sft/more.parquet: is no file of a version, though the manifest names it"
    assert told in verify(open_version(version.path))


def test_columns_that_say_more_than_published_ones_are_found(version: DatasetVersion) -> None:
    path = version.path / "sft" / "refiner.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"huggingface": "{}"}), path)
    problems = verify(version)
    assert any("its columns are not those of a published file" in line for line in problems), problems


def test_an_invalid_config_is_found(version: DatasetVersion) -> None:
    write_manifest(version.manifest.model_copy(update={"config": {"name": "arith"}}), version.path)
    (problem,) = verify(open_version(version.path))
    assert problem.startswith("manifest.json: arith@v1: its config is no longer a valid one (questions: ")


def test_many_problems_of_one_file_are_counted_not_listed(version: DatasetVersion) -> None:
    rewrite(version, "kto/refiner.parquet", lambda rows: [row.update(value=2.0) for row in rows])
    told = [line for line in verify(forge_manifest(version)) if line.startswith("kto/refiner.parquet: ")]
    assert len(told) == 6
    assert told[-1] == "kto/refiner.parquet: … and 73 more"


def test_a_manifest_survives_being_written_and_read(version: DatasetVersion) -> None:
    raw = json.loads((version.path / "manifest.json").read_bytes())
    assert Manifest.model_validate(raw) == version.manifest
    assert {
        "name",
        "version",
        "created_at",
        "content_sha256",
        "files",
        "config",
        "counts",
        "tokens",
        "cost",
    } <= raw.keys()
