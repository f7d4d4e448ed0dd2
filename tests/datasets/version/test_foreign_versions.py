"""Untrusted versions: no path of theirs leaves their folder, and none of their code runs without consent."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.canonical_json import digest, file_sha256
from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.publish.removal import collect_garbage, remove_version
from malt.datasets.publish.writer import Provenance
from malt.datasets.push.push import PARTIAL_FILE, push
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.datasets.version.folders import is_abandoned, temporary_name, version_numbers
from malt.errors import PushError, VersionError
from malt.prompts import load_prompts
from malt.training.run import prepare, read_train_spec
from tests.pool import kill_workers
from tests.published import mixed_tree, publish, publish_questions, publish_small, spec_of

OUTSIDE_PATHS = [
    "../../../x",
    "..",
    "sft/../../../x",
    "/etc/passwd",
    "//host/share/x",
    "sft//x",
    "./x",
    "sft/./x",
    "C:\\x",
    "..\\..\\x",
    ".ssh/authorized_keys",
    "sft/.hidden",
    "x\n",
    "x\u202e",
    "",
    "manifest.json",
    "manifest.json.partial",
]
OUTSIDE_NAMES = ["../../escaped", "/escaped", "a/b", "..", "", "A B", "name\n", "n\u202eame", "x" * 101]

COMMANDS = [
    ["show"],
    ["show", "q1"],
    ["verify"],
    ["explain", "q1/0.0.0"],
    ["report"],
    ["report", "--out", "out/report.html"],
    ["export", "--to", "trl", "out"],
    ["export", "--to", "prm", "out"],
    ["push", "out"],
    ["rebuild", "--out", "out/again"],
    ["audit", "--with", "exact"],
    ["diff", "arith"],
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of the user, and one from somebody else."""
    folder = tmp_path_factory.mktemp("published")
    publish_questions(["q1"], folder / "ours")
    publish_questions(["q1", "q2"], folder / "theirs")
    return folder


@pytest.fixture
def foreign(published: Path, tmp_path: Path) -> Path:
    """Folder of an untrusted version, copied outside the datasets folder."""
    shutil.copytree(published / "ours", Settings().datasets_dir, symlinks=True)
    return Path(shutil.copytree(published / "theirs" / "arith" / "v1", tmp_path / "v1"))


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and recompute its digest."""
    content = json.loads((folder / "manifest.json").read_bytes())
    content.pop("manifest_sha256")
    change(content)
    (folder / "manifest.json").write_text(json.dumps({**content, "manifest_sha256": digest(content)}))


def add_file(folder: Path, path: str) -> None:
    entry = {"bytes": 1, "sha256": "0" * 64, "rows": None, "rows_sha256": None}
    forge(folder, lambda manifest: manifest["files"].update({path: entry}))


def rename(folder: Path, name: str) -> None:
    forge(folder, lambda manifest: manifest.update(name=name))


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refuse(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command on a version; check that it is refused in one line and that no file changed."""
    before = listing(folder.parent)
    name, *arguments = command
    assert exit_code([name, str(folder), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert listing(folder.parent) == before
    return printed.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_path_out_of_the_version(
    foreign: Path, here: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_file(foreign, "../../../x")
    assert "manifest.json: files." in refuse(command, foreign, capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_name_that_is_a_path(
    foreign: Path, here: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rename(foreign, "../../escaped")
    assert "manifest.json: name: " in refuse(command, foreign, capsys)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_a_file_that_is_a_link(
    foreign: Path, here: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a push would send, and an export copy, the file behind the link."""
    (foreign / "sft" / "verifier.parquet").unlink()
    (foreign / "sft" / "verifier.parquet").symlink_to("/etc/passwd")
    assert "sft/verifier.parquet is a link or no plain file" in refuse(command, foreign, capsys)


@pytest.mark.parametrize("path", OUTSIDE_PATHS)
def test_no_path_leads_out_of_a_version(foreign: Path, path: str) -> None:
    add_file(foreign, path)
    with pytest.raises(VersionError, match=r"manifest\.json: files"):
        open_version(foreign)


@pytest.mark.parametrize("name", OUTSIDE_NAMES)
def test_no_name_leads_out_of_the_folder_of_datasets(foreign: Path, name: str) -> None:
    rename(foreign, name)
    with pytest.raises(VersionError, match=r"manifest\.json: name"):
        open_version(foreign)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("file", "replace"),
    [
        ("manifest.json", replace_by_link),
        ("README.md", replace_by_link),
        ("questions.parquet", replace_by_fifo),
        ("trajectories.parquet", replace_by_folder),
        ("dpo", replace_by_link),
    ],
)
def test_a_link_or_special_file_is_not_opened(foreign: Path, file: str, replace: Callable[[Path], None]) -> None:
    replace(foreign / file)
    with pytest.raises(VersionError, match=f"{file} is a link or no plain file"):
        open_version(foreign)


def test_a_push_writes_through_no_link(foreign: Path, tmp_path: Path) -> None:
    shelf, elsewhere = tmp_path / "shelf", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "README.md").write_text("mine")
    for link, target in (
        ("arith", elsewhere),
        ("arith/v1", elsewhere),
        ("arith/v1/README.md", elsewhere / "README.md"),
    ):
        (shelf / link).parent.mkdir(parents=True, exist_ok=True)
        (shelf / link).symlink_to(target)
        with pytest.raises(PushError, match="is a link, or neither file nor folder; nothing was sent"):
            push(open_version(foreign), str(shelf))
        shutil.rmtree(shelf)
    assert listing(elsewhere) == {str(elsewhere / "README.md"): b"mine"}


def test_a_push_waits_for_no_pipe(foreign: Path, tmp_path: Path) -> None:
    place = tmp_path / "shelf" / "arith" / "v1"
    place.mkdir(parents=True)
    os.mkfifo(place / PARTIAL_FILE)
    with pytest.raises(PushError, match="is a link, or neither file nor folder"):
        push(open_version(foreign), str(tmp_path / "shelf"))


GRADER = """
from pathlib import Path
Path({marker!r}).write_text("ran")
def grade(question, ground_truth, reply):
    return 1.0
"""


@pytest.fixture
def graded_by_code(tmp_path: Path, here: Path) -> DatasetVersion:
    """Version whose config names a grader module in the current folder."""
    Path("their_grader.py").write_text(GRADER.format(marker=str(tmp_path / "marker")))
    kill_workers()
    config = {**spec_of().as_config(), "evaluator": {"kind": "python", "function": "their_grader:grade"}}
    provenance = Provenance(load_prompts("general").digests)
    return publish([mixed_tree("q1")], RunSpec.model_validate(config), provenance, tmp_path / "theirs")


@pytest.mark.parametrize("command", [["rebuild", "--out", "again"], ["audit", "--with", "python"]], ids=" ".join)
def test_a_version_s_code_runs_only_where_it_is_trusted(
    graded_by_code: DatasetVersion,
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = refuse(command, graded_by_code.path, capsys)
    sha256 = hashlib.sha256((tmp_path / "their_grader.py").read_bytes()).hexdigest()
    assert f"their_grader:grade, {tmp_path / 'their_grader.py'} (SHA-256 {sha256}). Nothing was run" in told
    assert not (tmp_path / "marker").exists()
    exit_code([command[0], str(graded_by_code.path), *command[1:], "--trust-code"])
    assert sha256 in caplog.text
    assert (tmp_path / "marker").read_text() == "ran"


@pytest.mark.parametrize("command", [[*command] for command in COMMANDS if command[0] not in ("rebuild", "audit")])
def test_no_other_command_runs_a_version_s_code(
    graded_by_code: DatasetVersion, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code([command[0], str(graded_by_code.path), *command[1:]])
    assert not (tmp_path / "marker").exists()


def test_a_package_on_the_way_to_a_version_s_code_is_not_imported(here: Path, foreign: Path) -> None:
    (here / "theirs" / "inner").mkdir(parents=True, exist_ok=True)
    for name in ("theirs/__init__.py", "theirs/inner/__init__.py", "theirs/inner/grader.py"):
        (here / name).write_text(f"open({str(here / 'marker')!r}, 'w')")
    function = "theirs.inner.grader:grade"
    forge(foreign, lambda manifest: manifest["config"].update(evaluator={"kind": "python", "function": function}))
    assert exit_code(["rebuild", str(foreign), "--out", str(here / "again")]) == 2
    assert not (here / "marker").exists()


THEIRS = {"model": "openai/x", "api_base": "http://127.0.0.1:9/v1", "api_key_env": "SOME_SECRET"}
"""Endpoint that would receive texts and a key."""


@pytest.mark.parametrize("judge", [THEIRS, {"model": "embedded", "fallbacks": [THEIRS]}, {"model": "openai/x"}])
def test_a_foreign_version_s_judge_gets_neither_texts_nor_keys(
    foreign: Path, judge: dict[str, object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "s3cret")
    forge(foreign, lambda manifest: manifest["config"].update(evaluator={"kind": "llm", **judge}))
    assert "its config names a judge, " in refuse(["audit", "--with", "llm"], foreign, capsys)


def test_a_foreign_version_s_config_is_not_run_again(
    foreign: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    players = dict.fromkeys(("generator", "verifier", "refiner"), THEIRS)
    forge(foreign, lambda manifest: manifest["config"].update(roles=players))
    assert "its config names models, addresses, keys and files" in refuse(["rerun"], foreign, capsys)


def test_a_foreign_version_s_base_is_trained_only_where_it_is_named(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(foreign, lambda manifest: manifest["config"]["train"].update(base="their/base"))
    assert "its config names the base 'their/base'" in refuse(["train"], foreign, capsys)
    with pytest.raises(VersionError, match="names the base"):
        prepare(foreign, None, Settings())
    assert read_train_spec(open_version(foreign), None, ["train.base=my/base"]).base == "my/base"


def test_a_foreign_version_s_tokenizer_is_not_loaded(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(foreign, lambda manifest: manifest["config"]["dataset"].update(tokenizer="their/tokenizer"))
    assert "names the tokenizer 'their/tokenizer'" in refuse(["rebuild", "--out", "again"], foreign, capsys)


def test_a_foreign_version_s_damaged_questions_are_not_read_from_where_it_says(
    foreign: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("root:x:0:0\n")
    forge(foreign, lambda manifest: manifest["config"]["questions"].update(source=str(secret)))
    (foreign / "questions.parquet").write_bytes(b"damaged")
    assert "is from elsewhere" in refuse(["rebuild", "--out", str(tmp_path / "again")], foreign, capsys)


def test_a_link_and_a_bare_folder_are_no_versions(tmp_path: Path) -> None:
    folder = publish_small(tmp_path, "q1").path.parent
    (folder / "v2").symlink_to("v1")
    (folder / "v3").mkdir()
    assert version_numbers(folder) == [1]
    for number in (1, 2, 3):
        with pytest.raises(VersionError):
            remove_version(f"arith@v{number}", tmp_path)
    assert open_version("arith", tmp_path).number == 1
    assert publish_small(tmp_path, "q2").number == 4


def test_gc_removes_nothing_through_a_link(tmp_path: Path, settings: Settings) -> None:
    publish_small(settings.datasets_dir, "q1")
    elsewhere = tmp_path / "elsewhere"
    left = elsewhere / temporary_name(elsewhere).name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")
    left.mkdir(parents=True)
    (settings.datasets_dir / "linked").symlink_to(elsewhere)
    assert collect_garbage(settings, 0, delete=True).folders == 0
    assert left.is_dir()


def test_a_writer_of_the_same_host_name_in_another_container_is_not_taken_for_dead(tmp_path: Path) -> None:
    name = temporary_name(tmp_path).name
    host = name.removeprefix(".tmp-").partition(".")[0]
    theirs = tmp_path / f".tmp-{host}.0a0a0a0a-{2**22 + 1}-0a0a0a0a"
    theirs.mkdir()
    assert not is_abandoned(theirs)
    assert is_abandoned(tmp_path / name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))


@pytest.mark.parametrize("command", [["report"], ["report", "--out", "arith-v1-report.html"]], ids=" ".join)
def test_a_report_is_drawn_through_no_link(foreign: Path, here: Path, command: list[str]) -> None:
    (foreign / "report.html").unlink()
    (here / "mine").write_text("mine")
    for link in (Path.symlink_to, Path.hardlink_to):
        link(here / "arith-v1-report.html", here / "mine")
        assert exit_code([command[0], str(foreign), *command[1:]]) == 0
        assert (here / "mine").read_text() == "mine"
        (here / "arith-v1-report.html").unlink()
    os.mkfifo(here / "arith-v1-report.html")
    assert exit_code([command[0], str(foreign), *command[1:]]) == 2


def test_a_foreign_version_s_page_is_not_opened_but_drawn_anew_in_a_private_folder(
    foreign: Path, here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (foreign / "report.html").write_text("<script>alert(1)</script>")
    browser = here / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$1" > {here}/opened\n')
    browser.chmod(0o700)
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    command = [sys.executable, "-c", "from malt.cli.main import main; main()", "report", str(foreign), "--open"]
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [drawn] = temporary.glob("malt-*/arith-v1-report.html")
    assert (said, (here / "opened").read_text()) == (f"{drawn}\n", f"{drawn}\n")
    assert "alert(1)" not in drawn.read_text()
    assert drawn.parent.stat().st_mode & 0o077 == 0
    assert sorted(here.glob("*.html")) == []


OTHER_ROWS: dict[str, tuple[str, str, Callable[[pa.Array], pa.Array | None]]] = {
    "no ids": ("kto/refiner.parquet", "row_id", lambda _: None),
    "texts for messages": ("sft/refiner.parquet", "completion", lambda column: pa.array(["x"] * len(column))),
    "no messages": ("sft/refiner.parquet", "prompt", lambda column: pa.nulls(len(column), column.type)),
    "bytes for a text": ("questions.parquet", "ground_truth", lambda column: column.cast(pa.binary())),
    "no question": ("questions.parquet", "question", lambda column: pa.nulls(len(column), column.type)),
    "choices of nothing": (
        "questions.parquet",
        "choices",
        lambda column: pa.array([[None]] * len(column), column.type),
    ),
    "metadata that is no object": ("questions.parquet", "metadata", lambda column: pa.array(["NaN"] * len(column))),
    "depth": ("questions.parquet", "metadata", lambda column: pa.array(["[" * 100_000] * len(column))),
    "other questions": ("questions.parquet", "question_id", lambda column: pa.array(["q3"] * len(column))),
    "a huge reward": ("trajectories.parquet", "reward", lambda column: pa.array([1e308] * len(column))),
    "no values": ("trajectories.parquet", "value", lambda column: pa.nulls(len(column), column.type)),
    "empty lines": (
        "trajectories.parquet",
        "explanation",
        lambda column: pa.array([[None]] * len(column), column.type),
    ),
    "nodes out of order": ("trajectories.parquet", "node_id", lambda column: column[::-1]),
}
"""Columns of a file, and hostile values for them."""


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_hostile_rows_are_shown_or_refused_in_a_line(
    foreign: Path, here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, column, change = OTHER_ROWS[name]
    table = pq.read_table(foreign / file, partitioning=None)
    changed = change(table[column].combine_chunks())
    place = table.schema.get_field_index(column)
    table = table.remove_column(place)
    pq.write_table(table if changed is None else table.add_column(place, column, changed), foreign / file)
    entry = {"bytes": (foreign / file).stat().st_size, "sha256": file_sha256(foreign / file)}
    forge(foreign, lambda manifest: manifest["files"][file].update(entry))
    for command in [*COMMANDS, ["export", "--to", "sharegpt", "out-2"], ["audit", "--with", "number,math"]]:
        assert exit_code([command[0], str(foreign), *command[1:]]) in (0, 1, 2)
        assert "not expected" not in capsys.readouterr().err
