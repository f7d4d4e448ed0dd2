"""Keys are planted wherever a user has them; the output and files of every command are searched for them."""

import base64
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from malt.cli.main import exit_code
from malt.cli.main import malt as command_line
from tests import forking
from tests.configs import write_config
from tests.flows.service.conftest import Up, mute
from tests.forking import Process
from tests.homes import cache_database
from tests.mishaps import Asked, Fault
from tests.postgres import free_port
from tests.providers import ScriptedProvider

MALT = str(Path(sys.executable).parent / "malt")
KEYS = {
    "TEST_KEY": "planted-provider-key-7f3a91c2d4",
    "OPENAI_API_KEY": "sk-planted-openai-key-0d1e2f3a4b5c",
    "HF_TOKEN": "hf_PlantedHubTokenAbCdEfGhIjKlMnOp",
    "AWS_SECRET_ACCESS_KEY": "PlantedAwsSecret/AbCdEfGhIjKlMnOpQrSt",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "PREFECT_LOGGING_LEVEL": "DEBUG"}
EVALUATE = '\n[evaluate]\nquestions = { source = "questions.jsonl" }\nchains = 1\n[evaluate.systems.base]\n'
SMALL = [part for role in ("generator", "verifier", "refiner") for part in ("-s", f"roles.{role}.samples=2")]


class Said(NamedTuple):
    """Exit code and output of a command."""

    code: int
    text: str


class User:
    """A user with keys and separate home, temporary and working folders."""

    def __init__(self, folder: Path, provider: ScriptedProvider) -> None:
        self.folder, self.said = folder, dict[str, Said]()
        for name in ("home", "tmp", "work"):
            (folder / name).mkdir()
        cache_database(folder / "home")
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        places = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "MALT_DATA_DIR": folder / "data"}
        self.environment = {**kept, **KEYS, **OFFLINE, **{name: str(place) for name, place in places.items()}}
        self.config = write_config(folder / "work", provider, questions=2)
        self.config.write_text(self.config.read_text() + EVALUATE)

    def run(self, *arguments: str) -> None:
        """Run a command in a separate process."""
        done = subprocess.run(
            [MALT, *arguments], cwd=self.folder / "work", env=self.environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        self.said[" ".join(arguments)] = Said(done.returncode, done.stdout + done.stderr)

    def run_forked(self, *arguments: str) -> None:
        """Run a command in a forked process; it must report to a running server."""
        with Process(forking.MALT, *arguments, environment=self.environment, folder=self.folder / "work") as done:
            code = done.wait(timeout=300)
            self.said[" ".join(arguments)] = Said(code, "".join(done.said))

    def run_here(self, *arguments: str) -> None:
        """Run a command in this process, which is faster."""
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            patch.chdir(self.folder / "work")
            for name, value in self.environment.items():
                patch.setenv(name, value)
            code = exit_code([*arguments])
        out.flush()
        self.said[" ".join(arguments)] = Said(code, out.buffer.getvalue().decode())

    @contextmanager
    def serving(self, last: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
        """Start a server, yield it and its last line before it serves, and stop it as Ctrl-C does."""
        with subprocess.Popen(
            [MALT, *arguments], cwd=self.folder / "work", env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = list[str]()
            while not lines or not lines[-1].startswith(last):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            try:
                yield process, lines[-1]
            finally:
                process.send_signal(signal.SIGINT)
                rest, _ = process.communicate(timeout=120)
                said = "".join(line for line in lines if not line.startswith(last))  # may show the server's own new key
                self.said[" ".join(arguments)] = Said(process.returncode, said + rest)


def echo(asked: Asked) -> Fault | None:
    """Fail every fifth request, with a 400 or a 500, and echo the sent key in the response."""
    sent = asked.headers.get("Authorization", "")
    if asked.number % 5 == 1:
        body = {"error": {"message": f"Traceback: request with {sent} and {'x' * 270}{sent} failed", "code": sent}}
        return Fault(status=(500, 400)[asked.number % 2], text=json.dumps(body), headers={"x-request": sent})
    return None


ALONE: Sequence[Sequence[str]] = [["run", "CONFIG", *SMALL, "--debug"]]
"""Commands that run a flow with a private Prefect server."""
FLOWS: Sequence[Sequence[str]] = [
    ["assemble", "CONFIG", *SMALL, "-s", "credit.threshold=0.4"],
    ["improve", "CONFIG", "--rounds", "1", "-s", "limits.max_tokens_total=10"],
]
"""Commands that run flows beside `malt up`."""
REFUSED = ["run", "CONFIG", "-s", "roles.generator.seed=8", "-s", "name=refused"]
COMMANDS: Sequence[Sequence[str]] = [
    ["rerun", "sums", "--roles", "refiner", "--refresh"],
    ["plan", "CONFIG"],
    ["doctor", "CONFIG"],
    ["batches"],
    ["datasets"],
    ["show", "sums"],
    ["verify", "sums"],
    ["explain", "sums", "q0/0.0.0"],
    ["diff", "sums@v1", "sums"],
    ["compare", "sums@v1", "sums"],
    ["report", "sums", "--out", "report.html"],
    ["tag", "sums@v1", "kept"],
    ["export", "sums", "--to", "trl", "exported"],
    ["push", "sums", "pushed"],
    ["rebuild", "sums"],
    ["audit", "sums", "--with", "exact"],
    ["grade", "answers.jsonl", "--config", "CONFIG"],
    ["evaluate", "CONFIG"],
    ["evaluations"],
    ["train", "sums", "-s", "train.base=/nowhere"],
    ["models"],
    ["serve-adapters", "models/sums", "--to", "http://127.0.0.1:9"],
    ["init", "made.toml", "--questions", "questions.jsonl", "--model", "openai/gpt-4o-mini"],
    ["config", "--explain", "roles.generator.api_key_env"],
    ["gc"],
    ["rm", "sums@v1"],
]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user who has run every command."""
    with ScriptedProvider() as provider:
        provider.key, provider.faults = KEYS["TEST_KEY"], echo
        someone = User(tmp_path_factory.mktemp("user"), provider)
        (someone.folder / "work" / "answers.jsonl").write_text(
            '{"question": "1 + 1?", "ground_truth": "2", "answer": "2"}\n'
        )
        run_all(someone.run, someone, ALONE)
        run_beside_service(someone, provider)
        run_all(someone.run_here, someone, COMMANDS)
        serve(someone)
        yield someone


def run_all(run: Callable[..., None], user: User, commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        run(*(str(user.config) if part == "CONFIG" else part for part in command))


def run_beside_service(user: User, provider: ScriptedProvider) -> None:
    """Run flows that report to `malt up`; the last one has a key that is refused."""
    with user.serving("to see runs", "up", "--port", str(free_port())) as (process, line):
        service = Up(process, line.partition("PREFECT_API_URL=")[2].split()[0], user.folder / "data")
        mute(service)
        alone = user.environment
        user.environment = alone | service.as_named
        run_all(user.run_forked, user, FLOWS)
        provider.key = "another"
        run_all(user.run_forked, user, [REFUSED])
        provider.key, user.environment = KEYS["TEST_KEY"], alone


def serve(user: User) -> None:
    port = str(free_port())
    with user.serving("key ", "serve", str(user.config), "--port", port) as (_, line):
        body = json.dumps({"messages": [{"role": "user", "content": "1 + 1?"}]}).encode()
        headers = {"Authorization": f"Bearer {line.split()[1]}"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        deadline = time.monotonic() + 300
        while (said := post(url, body, headers)).code == 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        user.said["serve and answer"] = said


def post(url: str, body: bytes, headers: dict[str, str]) -> Said:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:
            return Said(answer.status, answer.read().decode())
    except HTTPError as error:
        return Said(error.code, error.read().decode())
    except OSError as error:
        return Said(0, str(error))


def forms(key: str) -> set[bytes]:
    """Return the forms in which a key may leak: plain, quoted for a URL, in base64, and a long part of it."""
    written = {key, quote(key, safe=""), base64.b64encode(key.encode()).decode(), key[: len(key) * 3 // 4]}
    return {each.encode() for each in written}


def contents(path: Path) -> bytes:
    """Return a file's bytes, followed by the decoded contents of Parquet and SQLite files."""
    found = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found += json.dumps(table.to_pylist(), default=str, ensure_ascii=False).encode()
    if found.startswith(b"SQLite format 3"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found += "\n".join(database.iterdump()).encode(errors="backslashreplace")
    return found


def test_every_command_was_run(user: User) -> None:
    assert {said.split()[0] for said in user.said} == set(command_line.commands)
    unforeseen = {command: said.text for command, said in user.said.items() if "not expected" in said.text}
    assert unforeseen == {}
    assert user.said[next(each for each in user.said if each.startswith("run"))].code in (0, 1)
    assert user.said["serve and answer"].code in (200, 502)


@pytest.mark.parametrize("name", KEYS)
def test_no_command_prints_a_key(user: User, name: str) -> None:
    said = [
        command for command, said in user.said.items() if any(form in said.text.encode() for form in forms(KEYS[name]))
    ]
    assert said == []


@pytest.mark.parametrize("name", KEYS)
def test_no_file_that_is_left_behind_holds_a_key(user: User, name: str) -> None:
    files = [path for path in user.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in files} >= {"store.db", "prefect.db", "server.log", "manifest.json"}
    assert [path for path in files if any(form in contents(path) for form in forms(KEYS[name]))] == []


def test_the_search_finds_a_key_that_is_there(user: User, tmp_path: Path) -> None:
    key = KEYS["TEST_KEY"]
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (f"Bearer {key}",))
        database.commit()
    (tmp_path / "b.log").write_text(base64.b64encode(key.encode()).decode())
    assert all(any(form in contents(path) for form in forms(key)) for path in tmp_path.iterdir())
