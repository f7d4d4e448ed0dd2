"""Pushing a version to a folder, to S3, and to other fsspec addresses; test_hub.py covers the Hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.datasets.check.verify import verify
from malt.datasets.manifest import MANIFEST_FILE
from malt.datasets.push.files import bundle_files
from malt.datasets.push.push import PARTIAL_FILE, push
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.errors import InputError, PushDamaged, PushError, VersionError
from tests.published import copied, publish_questions
from tests.s3 import S3

MALT = "from malt.cli.main import main; main()"
PROJECT = Path(__file__).parents[3]
ROWS_FILE = "sft/generator.parquet"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    publish_questions(["q1", "q2"], folder)
    return folder


@pytest.fixture
def version(published: Path) -> DatasetVersion:
    return copied(published, Settings().datasets_dir)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version with the same name and number and other content."""
    return publish_questions(["q3"], tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with S3("bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def paths_of(version: DatasetVersion) -> list[str]:
    """Return all files of a version, in the order in which they are sent."""
    return [file.path for file in bundle_files(version).files]


def test_a_version_pushed_to_a_folder_is_that_version(version: DatasetVersion, tmp_path: Path) -> None:
    done = push(version, str(tmp_path / "shared"))
    there = tmp_path / "shared" / "arith" / "v1"
    files = len(contents(version.path))
    assert (done.url, done.sent, done.skipped, done.verified) == (str(there), files, 0, files)
    assert done.bytes == sum(map(len, contents(there).values()))
    assert contents(there) == contents(version.path)
    assert verify(open_version("arith", tmp_path / "shared")) == []


@pytest.mark.parametrize("place", [".", "sft"])
def test_a_version_is_no_place_to_push_to(version: DatasetVersion, place: str) -> None:
    with pytest.raises(InputError, match="which never changes; name another folder"):
        push(version, str(version.path / place))
    assert verify(version) == []


def test_a_version_pushed_again_is_checked_and_not_sent(version: DatasetVersion, tmp_path: Path) -> None:
    push(version, str(tmp_path))
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("v1/**/*"))]
    done = push(version, str(tmp_path))
    files = len(contents(version.path))
    assert (done.sent, done.bytes, done.skipped, done.verified) == (0, 0, files, files)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("v1/**/*"))] == written


def test_only_what_is_missing_is_sent(version: DatasetVersion, tmp_path: Path) -> None:
    push(version, str(tmp_path))
    (tmp_path / "arith/v1" / ROWS_FILE).unlink()
    done = push(version, str(tmp_path))
    assert (done.sent, done.bytes) == (1, version.manifest.files[ROWS_FILE].bytes)
    assert contents(tmp_path / "arith/v1") == contents(version.path)


@pytest.mark.parametrize("scheme", ["memory://shelf", "file://{}/shelf"])
def test_any_address_that_fsspec_knows_will_do(version: DatasetVersion, tmp_path: Path, scheme: str) -> None:
    dest = scheme.format(tmp_path)
    assert push(version, dest).sent == len(paths_of(version))
    assert push(version, dest).sent == 0
    files = fsspec.open(f"{dest}/arith/v1/manifest.json").fs
    assert files.cat_file(f"{dest}/arith/v1/{ROWS_FILE}") == (version.path / ROWS_FILE).read_bytes()
    files.rm(dest, recursive=True)


def test_another_version_of_that_name_is_not_overwritten(
    version: DatasetVersion, another: DatasetVersion, tmp_path: Path
) -> None:
    push(another, str(tmp_path))
    with pytest.raises(PushError, match=r"arith/v1 holds other content already \(.* more\); .* Push elsewhere"):
        push(version, str(tmp_path))
    assert contents(tmp_path / "arith/v1") == contents(another.path)


def test_a_file_that_someone_changed_there_is_not_overwritten(version: DatasetVersion, tmp_path: Path) -> None:
    push(version, str(tmp_path))
    (tmp_path / "arith/v1/README.md").write_text("my own words")
    with pytest.raises(PushError, match=r"holds other content already \(README.md\); nothing was sent"):
        push(version, str(tmp_path))
    assert (tmp_path / "arith/v1/README.md").read_text() == "my own words"


def test_an_unfinished_push_is_finished(version: DatasetVersion, tmp_path: Path) -> None:
    there = tmp_path / "arith" / "v1"
    push(version, str(tmp_path))
    (there / MANIFEST_FILE).rename(there / PARTIAL_FILE)
    (there / ROWS_FILE).write_bytes(b"PAR1, cut o")
    assert push(version, str(tmp_path)).sent == 2
    assert contents(there) == contents(version.path)


def test_a_push_that_died_at_its_first_bytes_is_finished(version: DatasetVersion, tmp_path: Path) -> None:
    there = tmp_path / "arith" / "v1"
    there.mkdir(parents=True)
    (there / PARTIAL_FILE).write_bytes((version.path / MANIFEST_FILE).read_bytes()[:20])
    push(version, str(tmp_path))
    assert contents(there) == contents(version.path)


def test_the_mark_left_by_a_push_that_died_at_its_last_step_is_removed(version: DatasetVersion, tmp_path: Path) -> None:
    push(version, str(tmp_path))
    (tmp_path / "arith/v1" / PARTIAL_FILE).write_bytes((version.path / MANIFEST_FILE).read_bytes())
    assert push(version, str(tmp_path)).sent == 0
    assert contents(tmp_path / "arith/v1") == contents(version.path)


def test_an_unfinished_push_of_another_version_stays(
    version: DatasetVersion, another: DatasetVersion, tmp_path: Path
) -> None:
    there = tmp_path / "arith" / "v1"
    push(another, str(tmp_path))
    (there / MANIFEST_FILE).rename(there / PARTIAL_FILE)
    before = contents(there)
    with pytest.raises(PushError, match="holds an unfinished push of another arith@v1; nothing was sent"):
        push(version, str(tmp_path))
    assert contents(there) == before


@pytest.mark.parametrize("file", [ROWS_FILE, MANIFEST_FILE])
def test_a_version_that_was_tampered_with_is_not_pushed(version: DatasetVersion, tmp_path: Path, file: str) -> None:
    content = (version.path / file).read_bytes()
    (version.path / file).write_bytes(content.replace(b"arith", b"Arith").replace(b"PAR1", b"PAR2"))
    with pytest.raises(VersionError, match=f"changed since it was published: {file}; nothing was pushed. See: malt"):
        push(version, str(tmp_path / "shared"))
    assert not (tmp_path / "shared").exists()


def test_a_version_that_lacks_a_file_is_not_pushed(version: DatasetVersion, tmp_path: Path) -> None:
    (version.path / ROWS_FILE).unlink()
    with pytest.raises(VersionError, match=r"sft/generator.parquet cannot be read \(No such file"):
        push(version, str(tmp_path / "shared"))


def test_in_a_bucket_the_manifest_comes_last(version: DatasetVersion, s3: S3) -> None:
    done = push(version, "s3://bucket/team/")
    assert (done.url, done.sent) == ("s3://bucket/team/arith/v1", len(paths_of(version)))
    paths = [key.removeprefix("team/arith/v1/") for key in s3.written]
    assert paths == [PARTIAL_FILE, *paths_of(version)]
    assert paths[-1] == MANIFEST_FILE
    assert s3.listed() == sorted(f"team/arith/v1/{path}" for path in paths_of(version))


def test_a_push_killed_half_way_goes_on_where_it_was(version: DatasetVersion, s3: S3) -> None:
    s3.stall_at = 9  # the writes before: the bucket, the mark, six files
    killed = subprocess.Popen(
        [sys.executable, "-c", MALT, "push", str(version.path), "s3://bucket/team"], env=os.environ, cwd=PROJECT
    )
    assert s3.stalled.wait(180)
    killed.kill()
    killed.wait()
    arrived = [key.removeprefix("team/arith/v1/") for key in s3.written]
    assert arrived == [PARTIAL_FILE, *paths_of(version)[:6]]
    s3.written.clear()
    done = push(version, "s3://bucket/team")
    assert (done.sent, done.skipped) == (len(paths_of(version)) - 6, 6)
    assert [key.removeprefix("team/arith/v1/") for key in s3.written] == paths_of(version)[6:]
    assert s3.listed() == sorted(f"team/arith/v1/{path}" for path in paths_of(version))


def test_a_file_that_arrives_damaged_is_found_and_sent_again(
    version: DatasetVersion, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # not every storage checks uploads
    s3.damaged = {f"arith/v1/{ROWS_FILE}"}
    right = version.manifest.files[ROWS_FILE].sha256[:12]
    with pytest.raises(PushDamaged, match=f"s3://bucket/arith/v1/{ROWS_FILE} arrived damaged: .*{right}"):
        push(version, "s3://bucket")
    assert f"arith/v1/{MANIFEST_FILE}" not in s3.listed()
    s3.damaged.clear()
    before = len(s3.written)
    push(version, "s3://bucket")
    assert s3.written[before] == f"arith/v1/{ROWS_FILE}"
    assert push(version, "s3://bucket").sent == 0


def refusal(version: DatasetVersion, dest: str, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one-line error of a push."""
    assert exit_code(["push", str(version.path), dest, *options]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def test_a_bucket_that_is_not_there_is_not_made(
    version: DatasetVersion, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(version, "s3://missing/team", capsys=capsys)
    assert "s3://missing/team: no such place (The specified bucket does not exist); create the bucket" in said
    assert s3.written == ["/missing/team/arith/v1/manifest.json.partial".removeprefix("/")]


def test_without_permission_nothing_is_sent(
    version: DatasetVersion, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.forbid()
    said = refusal(version, "s3://bucket/team", capsys=capsys)
    assert "s3://bucket/team: no permission (The AWS Access Key Id you provided does not exist" in said
    s3.allow()
    assert s3.listed() == []


def test_without_credentials_the_error_says_so(
    version: DatasetVersion, s3: S3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "NoCredentialsError: Unable to locate credentials); check" in refusal(version, "s3://bucket", capsys=capsys)


def test_a_network_that_is_down_is_one_line(
    version: DatasetVersion, s3: S3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "EndpointConnectionError: Could not connect" in refusal(version, "s3://bucket", capsys=capsys)


@pytest.mark.parametrize(
    ("dest", "said"),
    [
        ("gopher://host/x", "gopher://host/x: cannot be used (ValueError: Protocol not known: gopher)"),
        ("dropbox://folder", "dropbox://folder: a package is missing"),
        ("ftp://me:hush@127.0.0.1:1/x", "ftp://127.0.0.1:1/x: cannot be used (ConnectionRefusedError"),
        ("/dev/null/x", "/dev/null/x: cannot be used (NotADirectoryError"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(
    version: DatasetVersion, capsys: pytest.CaptureFixture[str], dest: str, said: str
) -> None:
    told = refusal(version, dest, capsys=capsys)
    assert said in told
    assert "hush" not in told


def test_public_is_refused_for_a_folder(version: DatasetVersion, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--public is for hf:// destinations"):
        push(version, str(tmp_path), public=True)


def test_the_command_says_what_it_sent(
    version: DatasetVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest, files = str(tmp_path / "shared"), len(paths_of(version))
    assert exit_code(["push", "arith", dest]) == 0
    assert f"arith@v1 is at {dest}/arith/v1\n  sent      {files} files" in capsys.readouterr().out
    assert exit_code(["push", "arith@v1", dest]) == 0
    assert f"arith@v1 was at {dest}/arith/v1 already; nothing was sent" in capsys.readouterr().out
    assert exit_code(["push", "arith", dest, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = {"sent": 0, "bytes": 0, "skipped": files, "verified": files}
    of_the_hub = {"commit": None, "card": None, "private": None}
    assert told == {"version": "arith@v1", "dest": dest, "url": f"{dest}/arith/v1", **figures, **of_the_hub}
