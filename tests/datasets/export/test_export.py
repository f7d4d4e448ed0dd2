"""`malt export`: a version in another tool's format, in a folder that appears complete or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from malt.config.roles import PLAYERS
from malt.datasets.export.export import export
from malt.datasets.export.formats import FORMATS
from malt.datasets.rows.tables import TRAJECTORIES
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import InputError, VersionError
from tests.datasets.export.exporting import Export, contents


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
def test_an_impossible_export_is_refused_with_the_possible_ones(
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


def test_an_export_to_an_empty_folder_fills_it(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(version, "alpaca", tmp_path / "out")
    assert (tmp_path / "out" / "generator.jsonl").is_file()


def test_the_same_export_again_leaves_the_files_as_they_are(version: DatasetVersion, tmp_path: Path) -> None:
    before, after = (export(version, "alpaca", tmp_path / "out").path.stat().st_ino for _ in range(2))
    assert before == after
    assert list(tmp_path.glob(".tmp-*")) == []


def test_an_earlier_export_is_replaced(version: DatasetVersion, few: DatasetVersion, tmp_path: Path) -> None:
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
def test_a_folder_changed_since_its_export_is_left_alone(
    version: DatasetVersion, tmp_path: Path, malt_export: Export, spoil: Callable[[Path], None]
) -> None:
    export(version, "alpaca", tmp_path / "out")
    spoil(tmp_path / "out")
    before = contents(tmp_path / "out")
    said = malt_export(version, "alpaca", tmp_path / "out")
    assert (said.code, said.out) == (2, "")
    assert "which no export wrote or which changed; name another folder" in said.err
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
        (Path(), "is or contains the current folder"),
        (Path(".."), "is or contains the current folder"),
        (version.path / "export", "is in the version .*, which never changes"),
        (version.path.with_name("v7"), "would look like a version of 'arith'"),
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
