"""Export formats: which rows of a version each contains, and the files for its tool beside the rows."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from malt.config.roles import Role
from malt.datasets.export.export import RowChoice, export
from malt.datasets.export.formats import FORMATS
from malt.datasets.rows.tables import ROLE_FILES
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import parquet_rows
from malt.errors import NothingToExport
from tests.datasets.export.exporting import Export, contents, lines_of
from tests.published import publish_questions


def row_lines(form: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each file of a version, and its path in a JSONL export."""
    kinds = FORMATS[form].writers
    for source, file in ROLE_FILES.items():
        if file.kind in kinds:
            path = source.replace(".parquet", ".jsonl")
            yield source, path if len(kinds) > 1 else path.removeprefix(f"{file.kind}/")


JSONL = [name for name in FORMATS if name not in ("trl", "prm")]


@pytest.mark.parametrize("form", JSONL)
def test_every_row_of_every_role_and_split_is_a_line(version: DatasetVersion, tmp_path: Path, form: str) -> None:
    exported = export(version, form, tmp_path / "out")
    rows = {file.path: file.rows for file in exported.manifest.files}
    expected = {path: list(parquet_rows(version.path / source)) for source, path in row_lines(form)}
    assert rows == {path: len(there) for path, there in expected.items()}
    assert sum("validation" in path for path in rows) == len(rows) / 2
    for path, there in expected.items():
        for row, line in zip(there, lines_of(tmp_path / "out" / path), strict=True):
            assert texts_in(line) >= texts_in({name: row[name] for name in row if name in TEXTUAL})


TEXTUAL = {"prompt", "completion", "chosen", "rejected"}


def texts_in(value: object) -> set[str]:
    """Return every text in a value except the names of roles."""
    match value:
        case str():
            return {value}
        case dict():
            return {text for name, item in value.items() if name not in ("role", "from") for text in texts_in(item)}
        case list():
            return {text for item in value for text in texts_in(item)}
    return set()


def test_the_lines_are_in_the_order_of_the_version(version: DatasetVersion, tmp_path: Path) -> None:
    export(version, "sharegpt", tmp_path / "out")
    ids = [line["id"] for line in lines_of(tmp_path / "out" / "refiner.jsonl")]
    assert ids == list(version.sft("refiner")["row_id"])
    questions = [each.split("/")[1] for each in ids]
    assert all(before <= after for before, after in pairwise(questions))


@pytest.mark.parametrize("form", FORMATS)
def test_every_file_loads_with_its_rows(version: DatasetVersion, tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    exported = export(version, form, tmp_path / "out")
    for file in exported.manifest.files:
        cache = str(tmp_path / "cache")
        loaded = datasets.load_dataset(str(exported.path), file.config, split=file.split, cache_dir=cache)
        assert loaded.num_rows == file.rows


@pytest.mark.parametrize("form", FORMATS)
def test_equal_versions_give_equal_bytes(version: DatasetVersion, tmp_path: Path, form: str) -> None:
    export(version, form, tmp_path / "one")
    export(version, form, tmp_path / "two" / "deeper")
    assert contents(tmp_path / "one") == contents(tmp_path / "two" / "deeper")


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_prints_one_json_object_with_files_and_rows(
    version: DatasetVersion, tmp_path: Path, malt_export: Export, form: str
) -> None:
    said = malt_export(version, form, tmp_path / "out", "--json")
    told = json.loads(said.out)
    assert (said.code, told["format"], told["dir"]) == (0, form, str(tmp_path / "out"))
    assert told["version"] == "arith@v1"
    assert told["content_sha256"] == version.manifest.content_sha256
    assert all(file["rows"] and (tmp_path / "out" / file["path"]).is_file() for file in told["files"])


@pytest.mark.parametrize("form", ["openai-sft", "openai-dpo", "sharegpt", "alpaca"])
def test_without_any_row_there_is_no_folder(
    few: DatasetVersion, tmp_path: Path, malt_export: Export, form: str
) -> None:
    said = malt_export(few, form, tmp_path / "out")
    assert (said.code, said.out) == (1, "")
    assert f"few@v1 has no rows for {form} (" in said.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(NothingToExport):
        export(few, "trl", tmp_path / "out", RowChoice(splits=["validation"]))


def test_trl_s_files_are_the_version_s_own(version: DatasetVersion, tmp_path: Path) -> None:
    export(version, "trl", tmp_path / "out")
    for file in ROLE_FILES:
        assert (tmp_path / "out" / file).read_bytes() == (version.path / file).read_bytes()


def test_stepwise_rows_are_one_file_a_split_and_say_what_was_left_out(version: DatasetVersion, tmp_path: Path) -> None:
    files = export(version, "prm", tmp_path / "out").manifest.files
    assert [file.path for file in files] == ["prm.jsonl", "prm.validation.jsonl"]
    assert sum(file.rows for file in files) + sum(sum(file.left_out.values()) for file in files) == 6 * 27
    assert sum(file.left_out.get("duplicate_questions", 0) for file in files) == 27
    validation = set(version.questions.query("split == 'validation'")["question_id"]) - {"q5"}
    assert {line["question_id"] for line in lines_of(tmp_path / "out" / "prm.validation.jsonl")} == validation


def test_openai_s_least_number_of_rows_is_a_warning(tmp_path: Path, malt_export: Export) -> None:
    version = publish_questions(["q1", "q2"], tmp_path / "datasets")
    said = malt_export(version, "openai-sft", tmp_path / "out", "--json")
    warning = "generator.jsonl has 4 rows; OpenAI takes no fewer than 10"
    assert said.code == 0
    assert f"warning: {warning}" in said.err
    assert warning in json.loads(said.out)["warnings"]
    assert all("refiner" not in each for each in json.loads(said.out)["warnings"])


def test_axolotl_s_configs_name_the_files_and_how_they_are_read(version: DatasetVersion, tmp_path: Path) -> None:
    export(version, "axolotl", tmp_path / "out", RowChoice(roles=[Role.VERIFIER]))
    written = contents(tmp_path / "out")
    assert written["dpo-verifier.yaml"].decode() == (
        "# arith@v1: add this to an Axolotl config, and run it in this folder.\n"
        "rl: dpo\n"
        "datasets:\n"
        "  - path: dpo/verifier.jsonl\n"
        "    ds_type: json\n"
        "    split: train\n"
        "    type: chat_template.default\n"
        "    field_messages: messages\n"
        "    field_chosen: chosen\n"
        "    field_rejected: rejected\n"
        "test_datasets:\n"
        "  - path: dpo/verifier.validation.jsonl\n"
        "    ds_type: json\n"
        "    split: train\n"
        "    type: chat_template.default\n"
        "    field_messages: messages\n"
        "    field_chosen: chosen\n"
        "    field_rejected: rejected\n"
    )
    assert "message_field_training: train" in written["sft-verifier.yaml"].decode()
    assert "rl: kto\nremove_unused_columns: false\n" in written["kto-verifier.yaml"].decode()


def test_llamafactory_s_entries_name_files_and_columns_that_are_there(version: DatasetVersion, tmp_path: Path) -> None:
    export(version, "llamafactory", tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "dataset_info.json").read_bytes())
    assert len(entries) == len(ROLE_FILES)
    assert entries["arith-dpo-verifier-validation"] == {
        "file_name": "dpo/verifier.validation.jsonl",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    }
    for entry in entries.values():
        for line in lines_of(tmp_path / "out" / entry["file_name"]):
            assert set(entry["columns"].values()) <= line.keys()
