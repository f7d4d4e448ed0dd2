"""`malt export`: a version in another tool's format, in a folder that is whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from malt.config.roles import PLAYERS, Role
from malt.datasets.export.export import RowChoice, export
from malt.datasets.export.formats import FORMATS
from malt.datasets.rows.tables import ROLE_FILES, TRAJECTORIES
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.reading import parquet_rows
from malt.errors import InputError, NothingToExport, VersionError
from malt.llm.request import Message
from malt.questions.screening import Exclusion, Screening
from malt.trees.credit import ValuedTree
from tests.published import PROVENANCE, mixed_tree, publish, publish_questions, spec_of
from tests.strategies import tree_of, valued

Row = Mapping[str, Any]

TEXTS = [
    "plain",
    "日本語 😀",
    "a\0b\u2028c\x85d",
    "line\r\nbreak\n",
    "half \ud800 a character",
    '{"json": "\\"}',
    "2024-01-01",
]
EXAMPLE = (Message("user", "1 + 1?"), Message("assistant", "an example's reply"))


def shown_an_example(question_id: str, number: int) -> ValuedTree:
    """A tree whose prompts have system text and an example, and whose texts are hard to write down."""
    tree = mixed_tree(question_id)
    nodes = {
        address: replace(
            node,
            prompt=(node.prompt[0], *EXAMPLE, node.prompt[1]),
            completion=replace(node.completion, text=f"{node.text} {TEXTS[(place + number) % len(TEXTS)]}"),
        )
        for place, (address, node) in enumerate(tree.tree.nodes.items())
    }
    return replace(tree, tree=replace(tree.tree, nodes=nodes))


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Six questions, some in validation, one that gives no rows; pairs for every role."""
    screening = Screening(excluded={"q5": Exclusion("duplicate_questions", "q1")})
    trees = [shown_an_example(f"q{number}", number) for number in range(6)]
    made_by = replace(PROVENANCE, screening=screening)
    return publish(trees, spec_of(generator_dpo=True, validation=0.4), made_by, tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """One question whose leaves are all wrong: neither supervised rows nor pairs."""
    folder = tmp_path_factory.mktemp("datasets")
    return publish([valued(tree_of("q1"), [0] * 27)], spec_of("few"), PROVENANCE, folder)


class Said(NamedTuple):
    """What the command printed, and its exit code."""

    code: int
    out: str
    err: str


Export = Callable[..., Said]


@pytest.fixture
def malt_export(capsys: pytest.CaptureFixture[str]) -> Export:
    def run(version: DatasetVersion, to: str, *arguments: object) -> Said:
        code = exit_code(["export", str(version.path), "--to", to, *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return run


def lines_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def row_lines(form: str) -> Iterator[tuple[str, str]]:
    """Where each of a version's files goes in a format of JSONL files."""
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
    """Every text in a value, the names of roles apart."""
    match value:
        case str():
            return {value}
        case dict():
            return {text for name, item in value.items() if name not in ("role", "from") for text in texts_in(item)}
        case list():
            return {text for item in value for text in texts_in(item)}
    return set()


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


def test_the_command_prints_a_file_a_line(version: DatasetVersion, tmp_path: Path, malt_export: Export) -> None:
    said = malt_export(version, "prm", tmp_path / "out")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("arith@v1 as prm: ")
    assert "prm.validation.jsonl" in said.out
    assert "27 duplicate_questions" in said.out


def test_roles_kinds_and_splits_can_be_chosen(version: DatasetVersion, tmp_path: Path, malt_export: Export) -> None:
    options = ("--role", "refiner", "--role", "generator", "--kind", "kto", "--split", "validation")
    assert malt_export(version, "axolotl", tmp_path / "out", *options).code == 0
    rows = sorted(path for path in contents(tmp_path / "out") if path.endswith(".jsonl"))
    assert rows == ["kto/generator.validation.jsonl", "kto/refiner.validation.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["alpacca"], "--to alpacca: no such format; there are: trl, openai-sft, "),
        (["trl", "--role", "evaluator"], "--role evaluator: no such role; there are: generator, verifier, refiner"),
        (["openai-sft", "--kind", "dpo"], "--kind dpo: openai-sft takes sft"),
        (["prm", "--role", "verifier"], "--role verifier: a row of prm holds all three roles; leave --role out"),
        (["trl", "--split", "test"], "'test' is not one of 'train', 'validation'"),
    ],
)
def test_what_cannot_be_exported_says_what_can(
    version: DatasetVersion, tmp_path: Path, malt_export: Export, arguments: list[str], said: str
) -> None:
    to, *options = arguments
    told = malt_export(version, to, tmp_path / "out", *options)
    assert (told.code, told.out) == (2, "")
    assert said in told.err
    assert not (tmp_path / "out").exists()


def test_the_help_lists_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["export", "--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in FORMATS if f"  {name} " not in printed] == []


def test_a_file_without_rows_is_not_written_and_that_is_said(
    few: DatasetVersion, tmp_path: Path, malt_export: Export
) -> None:
    said = malt_export(few, "llamafactory", tmp_path / "out")
    assert said.code == 0
    assert "not written, as they would have no rows: sft/generator.jsonl, sft/verifier.jsonl" in said.err
    assert list(json.loads((tmp_path / "out" / "dataset_info.json").read_bytes())) == [
        f"few-kto-{role}" for role in PLAYERS
    ]


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


def test_an_export_to_an_empty_folder_fills_it(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(version, "alpaca", tmp_path / "out")
    assert (tmp_path / "out" / "generator.jsonl").is_file()


def test_the_same_export_again_leaves_the_files_as_they_are(version: DatasetVersion, tmp_path: Path) -> None:
    before, after = (export(version, "alpaca", tmp_path / "out").path.stat().st_ino for _ in range(2))
    assert before == after
    assert list(tmp_path.glob(".tmp-*")) == []


def test_an_earlier_export_gives_way(version: DatasetVersion, few: DatasetVersion, tmp_path: Path) -> None:
    export(version, "axolotl", tmp_path / "out")
    export(few, "llamafactory", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["kto"]
    assert sorted(contents(tmp_path / "out")) == sorted(
        ["README.md", "dataset_info.json", "export.json", *(f"kto/{role}.jsonl" for role in PLAYERS)]
    )
    assert list(tmp_path.glob(".tmp-*")) == []


def add_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def edit_a_file(folder: Path) -> None:
    with (folder / "verifier.jsonl").open("a") as file:
        file.write("{}\n")


def add_a_link(folder: Path) -> None:
    (folder / "linked").symlink_to(folder.parent)


def remove_a_file(folder: Path) -> None:
    (folder / "verifier.jsonl").unlink()


def spoil_the_manifest(folder: Path) -> None:
    (folder / "export.json").write_text("{}")


def replace_the_manifest_by_a_pipe(folder: Path) -> None:
    (folder / "export.json").unlink()
    os.mkfifo(folder / "export.json")


SPOILT = [add_notes, edit_a_file, add_a_link, remove_a_file, spoil_the_manifest, replace_the_manifest_by_a_pipe]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_folder_with_anything_of_somebody_s_own_is_left_alone(
    version: DatasetVersion, tmp_path: Path, malt_export: Export, spoil: Callable[[Path], None]
) -> None:
    export(version, "alpaca", tmp_path / "out")
    spoil(tmp_path / "out")
    before = contents(tmp_path / "out")
    said = malt_export(version, "alpaca", tmp_path / "out")
    assert (said.code, said.out) == (2, "")
    assert "which is not as an export left it; name another folder" in said.err
    assert contents(tmp_path / "out") == before


def test_an_export_writes_through_no_link(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(InputError, match="out is a link; name the folder that it leads to"):
        export(version, "trl", tmp_path / "out")
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_a_file_the_current_folder_and_a_version_are_no_place_for_an_export(
    version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, why in [
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "below", "file: no folder can be made there"),
        (Path(), "is the folder you are in, or around it"),
        (Path(".."), "is the folder you are in, or around it"),
        (version.path / "export", "is in the version .*, which never changes"),
        (version.path.with_name("v7"), "would pass for a version of 'arith'"),
        (Path("~nobody-of-this-name/out"), "cannot be a folder"),
        (Path("a" * 5000), "cannot be a folder: .*File name too long"),
    ]:
        with pytest.raises(InputError, match=why):
            export(version, "alpaca", place)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_version_that_cannot_be_read_leaves_nothing_behind(
    version: DatasetVersion, tmp_path: Path, malt_export: Export
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(version.path, copy)
    (copy / "sft" / "refiner.parquet").write_bytes(b"no parquet at all")
    said = malt_export(replace(version, path=copy), "trl", tmp_path / "out")
    assert (said.code, said.out) == (2, "")
    assert "refiner.parquet cannot be read" in said.err
    assert f"malt verify {copy}" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_trajectories_out_of_order_are_not_passed_over(version: DatasetVersion, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(version.path, copy)
    frame = version.trajectories.sort_values("question_id", ascending=False, kind="stable")
    table = pa.Table.from_pandas(frame, TRAJECTORIES, preserve_index=False).replace_schema_metadata()
    pq.write_table(table, copy / "trajectories.parquet")
    with pytest.raises(VersionError, match="is not in the order of its questions"):
        export(replace(version, path=copy), "prm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


KILLED = """
import sys
from pathlib import Path
from malt.datasets.export.export import export
from malt.datasets.version.dataset_version import open_version
version = open_version(sys.argv[1])
for number in range(1000):
    export(version, "axolotl", Path(sys.argv[2]) / f"out{number}")
"""


def test_an_export_that_is_killed_leaves_whole_folders_and_the_next_one_clears_up(
    version: DatasetVersion, tmp_path: Path
) -> None:
    folder = tmp_path / "exports"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(version.path), str(folder)]) as process:
        while process.poll() is None and not (folder / "out1").exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    whole = contents(export(version, "axolotl", folder / "last").path)
    assert {path.name[:3] for path in folder.iterdir()} == {"out", "las"}
    assert all(contents(path) == whole for path in folder.iterdir())


def test_the_lines_are_in_the_order_of_the_version(version: DatasetVersion, tmp_path: Path) -> None:
    export(version, "sharegpt", tmp_path / "out")
    ids = [line["id"] for line in lines_of(tmp_path / "out" / "refiner.jsonl")]
    assert ids == list(version.sft("refiner")["row_id"])
    questions = [each.split("/")[1] for each in ids]
    assert all(before <= after for before, after in pairwise(questions))
