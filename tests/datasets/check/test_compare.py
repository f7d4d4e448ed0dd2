"""`malt diff`: which inputs and which rows differ between two versions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt.cli.main import exit_code
from malt.config.roles import Role, Roles, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import CreditSpec
from malt.datasets.check.compare import VersionDiff, compare, group_columns, hash_columns, number_texts
from malt.datasets.rows.tables import MEASURED, TRAJECTORIES, TRAJECTORIES_FILE
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import VersionError
from malt.trees.credit import ValuedTree
from malt.trees.tree import Tree
from tests.published import MIXED, PROVENANCE, copied, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import incomplete_tree_of, tree_of, valued, valued_trees

QUESTIONS = ["q1", "a/b", "q17"]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    publish_questions(QUESTIONS, folder)
    return folder


@pytest.fixture
def version(datasets: Path) -> DatasetVersion:
    return copied(datasets, Settings().datasets_dir)


def published(*trees: ValuedTree, name: str = "arith", **update: Any) -> DatasetVersion:  # noqa: ANN401 - a spec's values
    spec = spec_of(name).model_copy(update=update)
    return publish(trees, spec, PROVENANCE, Settings().datasets_dir)


def rethresholded(threshold: float = 0.6) -> DatasetVersion:
    credit = CreditSpec(threshold=threshold)
    return published(*(valued(tree_of(each), MIXED, credit) for each in QUESTIONS), credit=credit)


def refined_again(tree: Tree) -> Tree:
    """Return the tree with other refinements, as another refiner would write them."""
    nodes = {
        address: replace(node, completion=replace(node.completion, text=f"{node.text}, again", key=f"{address}, again"))
        if address.is_leaf
        else node
        for address, node in tree.nodes.items()
    }
    return replace(tree, nodes=nodes)


def rows_of(version: DatasetVersion, file: str) -> dict[str, dict[str, Any]]:
    """Return a file's rows by id, without the columns about the run."""
    rows: list[dict[str, Any]] = pq.read_table(version.path / file).to_pylist()
    kept = [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
    return {row.get("row_id") or "/".join(filter(None, [row["question_id"], row.get("node_id")])): row for row in kept}


def changed_files(diff: VersionDiff) -> dict[str, tuple[int, int, int]]:
    return {file: (each.added, each.removed, each.changed) for file, each in diff.files.items() if not each.same}


def test_equal_content_says_so(version: DatasetVersion, tmp_path: Path) -> None:
    same = publish_questions(QUESTIONS, tmp_path, name="other")
    diff = compare(version, same)
    assert diff.same_content
    assert all(change.same and not change.questions for change in diff.files.values())
    assert diff.inputs.config["name"].model_dump() == {"old": "arith", "new": "other"}


def test_a_changed_threshold_is_named_and_relabels(version: DatasetVersion) -> None:
    diff = compare(version, rethresholded())
    assert {name: (each.old, each.new) for name, each in diff.inputs.config.items()} == {"credit.threshold": (0.5, 0.6)}
    assert (diff.inputs.prompts, diff.inputs.questions, diff.inputs.code) == ({}, {}, {})
    assert changed_files(diff) == {
        "sft/generator.parquet": (0, 3, 0),
        "kto/generator.parquet": (0, 0, 3),
        "trajectories.parquet": (0, 0, 3),
    }
    kto = diff.files["kto/generator.parquet"]
    assert (kto.relabelled, kto.rewritten, kto.questions_changed) == (3, 0, 3)
    first = kto.questions[0]
    assert (first.question_id, first.changed, first.relabelled) == ("q1", 1, 1)
    assert [(row.row_id, row.change) for row in first.rows] == [("kto-generator/q1/0", "changed")]
    assert {name: (each.old, each.new) for name, each in first.rows[0].columns.items()} == {"label": (True, False)}


def test_a_changed_refiner_rewrites_the_refinements_alone(version: DatasetVersion) -> None:
    trees = (valued(refined_again(tree_of(each)), MIXED) for each in QUESTIONS)
    diff = compare(version, published(*trees, roles=Roles(refiner=RoleSpec(model="openai/other"))))
    assert list(diff.inputs.config) == ["roles.refiner.model"]
    assert changed_files(diff) == {
        "sft/refiner.parquet": (0, 0, 39),
        "dpo/refiner.parquet": (0, 0, 33),
        "kto/refiner.parquet": (0, 0, 78),
        "trajectories.parquet": (0, 0, 81),
    }
    nodes = diff.files["trajectories.parquet"]
    assert (nodes.rewritten, nodes.relabelled) == (81, 0)
    text = nodes.questions[1].rows[0].columns["text"]
    assert (text.old, text.new) == ("refiner 0.0.0 on a/b", "refiner 0.0.0 on a/b, again")


def test_a_prompt_that_changed_rewrites_its_rows(version: DatasetVersion) -> None:
    def asked_otherwise(tree: Tree) -> Tree:
        verifier = {each: replace(tree.nodes[each], prompt=()) for each in tree.nodes if each.role is Role.VERIFIER}
        return replace(tree, nodes={**dict(tree.nodes), **verifier})

    provenance = replace(PROVENANCE, prompts={"verifier/user.md": "1" * 64, "verifier/system.md": "2" * 64})
    trees = (valued(asked_otherwise(tree_of(each)), MIXED) for each in QUESTIONS)
    diff = compare(version, publish(trees, spec_of(), provenance, Settings().datasets_dir))
    assert {name: (each.old, each.new) for name, each in diff.inputs.prompts.items()} == {
        "verifier/user.md": ("0" * 64, "1" * 64),
        "verifier/system.md": (None, "2" * 64),
    }
    rows = {f"{kind}/verifier.parquet" for kind in ("sft", "dpo", "kto")}
    assert set(changed_files(diff)) == {*rows, "trajectories.parquet"}  # trajectories hold the prompts' lengths
    assert diff.files["sft/verifier.parquet"].rewritten == diff.files["sft/verifier.parquet"].changed == 15


def test_other_questions_add_and_remove_rows(version: DatasetVersion) -> None:
    diff = compare(version, publish_questions(["q1", "a/b", "q18"], Settings().datasets_dir))
    assert list(diff.inputs.questions) == ["sha256"]
    nodes = diff.files["trajectories.parquet"]
    assert (nodes.added, nodes.removed, nodes.changed, nodes.questions_changed) == (39, 39, 0, 2)
    assert [(each.question_id, each.added, each.removed) for each in nodes.questions] == [
        ("q17", 0, 39),
        ("q18", 39, 0),
    ]
    assert [row.row_id for row in nodes.questions[1].rows[:3]] == ["q18/0", "q18/0.0", "q18/0.0.0"]


def test_a_tree_that_was_completed_is_seen_in_the_questions() -> None:
    half = published(mixed_tree("q1"), valued(incomplete_tree_of("q2"), {}))
    change = compare(half, publish_questions(["q1", "q2"], Settings().datasets_dir)).files["questions.parquet"]
    assert (change.changed, change.relabelled, change.rewritten) == (1, 0, 0)
    assert change.questions[0].rows[0].columns["complete"].model_dump() == {"old": False, "new": True}


def test_the_same_rows_in_another_order_are_no_change_of_rows(version: DatasetVersion) -> None:
    diff = compare(version, publish_questions(QUESTIONS[::-1], Settings().datasets_dir))
    assert not diff.same_content
    assert set(changed_files(diff).values()) == {(0, 0, 0)}


def test_the_number_of_listed_questions_is_limited(version: DatasetVersion) -> None:
    change = compare(version, rethresholded(), questions=1).files["kto/generator.parquet"]
    assert (len(change.questions), change.questions_changed, change.changed) == (1, 3, 3)


@settings(max_examples=8)
@given(st.data())
def test_the_counts_are_those_of_a_row_by_row_comparison(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("datasets")
    old, new = (
        publish([data.draw(valued_trees(each)) for each in ids], spec_of(name), PROVENANCE, folder)
        for name, ids in (("old", ["q1", "q2"]), ("new", ["q2", "q3", "q1"]))
    )
    for file, change in compare(old, new).files.items():
        before, after = rows_of(old, file), rows_of(new, file)
        changed = {row_id for row_id in before.keys() & after.keys() if before[row_id] != after[row_id]}
        assert (change.added, change.removed) == (len(after.keys() - before.keys()), len(before.keys() - after.keys()))
        assert change.changed == len(changed)
        told = {row.row_id: row for question in change.questions for row in question.rows}
        assert told.keys() == (before.keys() ^ after.keys()) | changed
        for row_id in changed:
            assert {name: (each.old, each.new) for name, each in told[row_id].columns.items()} == {
                name: (value, after[row_id][name])
                for name, value in before[row_id].items()
                if value != after[row_id][name]
            }


@given(valued_trees(), st.integers(0, 10), st.integers(1, 10))
def test_a_row_s_marks_do_not_depend_on_its_batch(tree: ValuedTree, start: int, length: int) -> None:
    from malt.datasets.rows.examples import trajectory_rows

    batch = pa.RecordBatch.from_pylist(list(trajectory_rows(tree)), schema=TRAJECTORIES)
    for names in group_columns(batch.schema.names).values():
        whole = hash_columns(batch, names)
        assert hash_columns(batch.slice(start, length), names).tolist() == whole[start : start + length].tolist()


def test_questions_are_numbered_as_they_come() -> None:
    numbers: dict[str, int] = {}
    assert number_texts(pa.array(["b", "a", "b"]), numbers).tolist() == [0, 1, 0]
    assert number_texts(pa.array(["c", "a"]), numbers).tolist() == [2, 1]


def test_nothing_and_an_empty_text_are_not_the_same() -> None:
    def marks(values: list[Any], kind: pa.DataType) -> list[int]:
        batch = pa.RecordBatch.from_arrays([pa.array(values, kind)], ["it"])
        return [int(mark) for mark in hash_columns(batch, ["it"])]

    texts = pa.list_(pa.string())
    assert len(set(marks([None, "", "None"], pa.string()))) == 3
    assert len(set(marks([None, [], [""], ["", ""], ["a", "b"], ["ab"]], texts))) == 6
    assert len(set(marks([None, 0.0, 0.1], pa.float64()))) == 3
    assert len(set(marks([None, False, True], pa.bool_()))) == 3


def test_a_file_that_is_not_readable_is_an_error(version: DatasetVersion) -> None:
    other = rethresholded()
    (other.path / TRAJECTORIES_FILE).write_bytes(b"PAR1")
    with pytest.raises(VersionError, match=r"trajectories\.parquet of .* cannot be read"):
        compare(version, other)


def test_the_command_prints_inputs_counts_and_first_rows(
    version: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    rethresholded()
    assert exit_code(["diff", "arith@v1", "arith"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("arith@v1 -> arith@v2\ninputs that differ:\n  config     credit.threshold  0.5 -> 0.6\n")
    assert "  ~ kto-generator/a/b/0  label true -> false\n" in printed
    assert "  - sft-generator/q1/0\n" in printed


def test_the_command_prints_the_first_of_many_rows_and_in_full_all_by_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions = [f"p{number}" for number in range(20)]
    for name, asked in (("old", questions[:10]), ("new", questions[10:])):
        publish_questions(asked, Settings().datasets_dir, name=name)
    assert exit_code(["diff", "old", "new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    assert [sum(line.startswith(f"  {sign} ") for line in lines) for sign in "+-~"] == [3, 3, 0]
    assert exit_code(["diff", "old", "new", "--full"]) == 0
    printed = capsys.readouterr().out
    assert "sft/refiner.parquet\n  p0: 13 removed\n    - sft-refiner/p0/" in printed
    assert printed.count("\n    - sft-refiner/") == 130


def test_the_command_cuts_long_texts_around_where_they_part(capsys: pytest.CaptureFixture[str]) -> None:
    shared = "the same words " * 40
    for ending in ("then these", "then those"):
        tree = tree_of("q1", (1, 1, 1))
        leaf = max(tree.nodes)
        node = tree.nodes[leaf]
        ended = replace(node, completion=replace(node.completion, text=shared + ending))
        published(valued(replace(tree, nodes={**tree.nodes, leaf: ended}), [1]))
    assert exit_code(["diff", "arith@v1", "arith@v2"]) == 0
    assert "~ q1/0.0.0  text …e words then these -> …e words then those\n" in capsys.readouterr().out


def test_the_command_says_when_nothing_differs(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["diff", "arith", "arith@v1"]) == 0
    printed = capsys.readouterr().out
    assert printed == (
        "arith@v1 -> arith@v1\nno input differs\n"
        f"same content: every row is the same ({version.manifest.content_sha256[:12]})\n"
    )


def test_the_command_prints_all_as_one_json_object(version: DatasetVersion, capsys: pytest.CaptureFixture[str]) -> None:
    other = publish_questions([f"p{number}" for number in range(12)], Settings().datasets_dir, name="other")
    assert exit_code(["diff", "arith", str(other.path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == compare(version, other).model_dump(mode="json")
    assert len(printed["files"]["questions.parquet"]["questions"]) == 15


def test_the_command_refuses_a_path_without_a_version(
    version: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["diff", "arith", "nothing"]) == 2
    assert "no dataset 'nothing'" in capsys.readouterr().err
