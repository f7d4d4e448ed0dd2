"""The `malt` command: what it prints, where, and with which exit code. Runs of a flow are tested in flows/."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.datasets.version.dataset_version import DatasetVersion
from tests.configs import write_config
from tests.providers import ScriptedProvider
from tests.published import publish_questions

COMMANDS = ["plan", "run", "assemble", "datasets", "show", "verify", "push", "tag", "rebuild", "rm", "gc"]
PROJECT = Path(__file__).parents[2]


class Said(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The only JSON object on stdout."""
        return dict(json.loads(self.out))


Malt = Callable[..., Said]


@pytest.fixture
def malt(capsys: pytest.CaptureFixture[str]) -> Malt:
    def run(*arguments: object, debug: bool = False) -> Said:
        code = exit_code([str(argument) for argument in arguments], debug=debug)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def version() -> DatasetVersion:
    return publish_questions(["q1", "q2"], Settings().datasets_dir)


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_config(tmp_path, provider, questions=4)


def is_error(said: Said, *parts: str) -> bool:
    """Whether a command printed an error of one or two lines to stderr, and nothing else."""
    lines = said.err.splitlines()
    assert said.out == ""
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert [part for part in parts if part not in said.err] == []
    return True


def test_help_lists_every_command(malt: Malt) -> None:
    said = malt("--help")
    assert said.code == 0
    assert [command for command in COMMANDS if f"  {command} " not in said.out] == []


def test_help_describes_every_command_in_a_whole_sentence(malt: Malt) -> None:
    listed = malt("--help").out.partition("From questions to a dataset:")[2]
    assert listed
    assert "..." not in listed


def test_every_command_explains_itself(malt: Malt) -> None:
    for command in COMMANDS:
        said = malt(command, "--help")
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(f"Usage: malt {command}")


def test_malt_without_a_command_shows_the_help(malt: Malt) -> None:
    said = malt()
    assert said.code == 2
    assert "From questions to a dataset:" in said.out


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'prefect', 'litellm', 'pandas', 'pyarrow', 'sqlalchemy', 'pydantic', 'rich'}"
    program = f"import sys, malt.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["grow", "x.toml"], ["No such command 'grow'", "malt --help"]),
        (["plan"], ["Missing argument 'CONFIG'"]),
        (["plan", "missing.toml"], ["missing.toml"]),
        (["run", "missing.toml", "--json"], ["missing.toml"]),
        (["assemble", "missing.toml"], ["missing.toml"]),
        (["plan", "x.toml", "--limit", "0"], ["--limit"]),
        (["show", "nothing"], ["nothing", "none yet"]),
        (["show", "nothing@v3"], ["nothing"]),
        (["verify", "no/such/folder"], ["no/such/folder"]),
        (["datasets", "nothing"], ["nothing"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_exits_2_and_says_why(malt: Malt, arguments: list[str], parts: list[str]) -> None:
    said = malt(*arguments)
    assert said.code == 2
    assert is_error(said, *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("roles.generator.sampels=3", ["sampels", "roles.generator"]),
        ("roles.generator.samples=none", ["roles.generator.samples", "none"]),
        ("run.tracking=leaf", ["run.tracking", "branch", "shard"]),
        ("questions.source=elsewhere.jsonl", ["elsewhere.jsonl"]),
        ("prompts=no-such-set", ["prompts: no prompt set or folder 'no-such-set'"]),
        ("roles.verifier.model=nonsense", ["roles.verifier.model: model 'nonsense' names no provider"]),
        ("roles.verifier.model=none@v3", ["roles.verifier.model: model 'none@v3': no model 'none'"]),
    ],
)
def test_a_wrong_value_exits_2_and_names_key_and_value(
    malt: Malt, config: Path, override: str, parts: list[str]
) -> None:
    said = malt("plan", config, "-s", override)
    assert said.code == 2
    assert is_error(said, *parts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ini"], "error: No such command 'ini'. Did you mean 'init'? See: malt --help\n"),
        (["init", "--nonsense"], "error: No such option '--nonsense'. See: malt init --help\n"),
        (
            ["plan", "c.toml", "--limit", "x"],
            "error: Invalid value for '--limit': 'x' is not a valid whole number. See: malt plan --help\n",
        ),
    ],
)
def test_a_wrong_command_line_names_the_help_to_read(malt: Malt, arguments: list[str], said: str) -> None:
    assert malt(*arguments).err == said


def test_a_broken_row_is_named_with_its_line(malt: Malt, config: Path) -> None:
    with (config.parent / "questions.jsonl").open("a") as questions:
        questions.write("{broken\n")
    said = malt("plan", config)
    assert said.code == 2
    assert is_error(said, "questions.jsonl", "5")


def test_a_grader_that_fails_is_refused_before_anything_is_asked(
    malt: Malt, config: Path, provider: ScriptedProvider
) -> None:
    (config.parent / "mine.py").write_text("def grade(answer): return 1")
    grader = ["-s", "evaluator.kind=python", "-s", "evaluator.function=mine:grade"]
    said = malt("run", config, *grader)
    assert is_error(said, "mine.py:grade", "takes 1 positional argument but 3 were given", "with its own reference")
    assert said.code == 2
    assert not provider.requests


def test_debug_shows_where_an_error_came_from(malt: Malt) -> None:
    said = malt("plan", "missing.toml", debug=True)
    assert said.code == 2
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("error: ")


def test_a_plan_is_one_object_with_json_and_a_table_without(malt: Malt, config: Path) -> None:
    as_json, table = malt("plan", config, "--json", "--limit", 3), malt("plan", config, "--limit", 3)
    assert (as_json.code, table.code, as_json.err, table.err) == (0, 0, "", "")
    assert as_json.json["questions"] == 3
    assert as_json.json["requests"] == 3 * 13
    assert "unknown" in table.out
    assert "3 questions" in table.out
    assert table.out.count("assumed: ") == 1


def test_datasets_are_listed_with_their_rows_and_digests(malt: Malt, version: DatasetVersion) -> None:
    listed = malt("datasets", "--json").json["versions"]
    assert [(each["name"], each["version"]) for each in listed] == [("arith", 1)]
    assert listed[0]["content_sha256"] == version.manifest.content_sha256
    assert listed[0]["rows"]["trajectories.parquet"] == 2 * 39
    assert "arith@v1" in malt("datasets").out
    assert "arith@v1" in malt("datasets", "arith").out


def test_a_version_that_cannot_be_read_is_listed_as_such(malt: Malt, version: DatasetVersion) -> None:
    publish_questions(["q3"], version.path.parents[1])
    (version.path / "manifest.json").write_text("{")
    said, as_json = malt("datasets"), malt("datasets", "--json")
    assert (said.code, as_json.code) == (1, 1)
    assert "arith@v2" in said.out
    assert "arith@v1" not in said.out
    assert said.err.startswith("error: arith@v1: ")
    assert len(said.err.splitlines()) == 1
    assert [each["version"] for each in as_json.json["versions"]] == [2]
    assert [*as_json.json["unreadable"]] == ["arith@v1"]
    assert "manifest.json" in as_json.json["unreadable"]["arith@v1"]


def test_without_datasets_the_next_step_is_said(malt: Malt) -> None:
    said = malt("datasets")
    assert said.code == 0
    assert "malt run" in said.out
    assert malt("datasets", "--json").json == {"versions": [], "unreadable": {}}


def test_a_version_is_shown_by_name_number_and_folder(malt: Malt, version: DatasetVersion) -> None:
    shown = [malt("show", reference) for reference in ("arith", "arith@v1", version.path)]
    assert {said.code for said in shown} == {0}
    assert len({said.out for said in shown}) == 1
    assert version.manifest.content_sha256 in shown[0].out
    assert malt("show", "arith", "--json").json["content_sha256"] == version.manifest.content_sha256


def test_a_tree_is_shown_with_every_node(malt: Malt, version: DatasetVersion) -> None:
    said = malt("show", "arith", "q1")
    assert said.code == 0
    assert said.out.count("refiner ") >= 27
    nodes = malt("show", "arith", "q1", "--json").json["nodes"]
    assert len(nodes) == 39
    assert {node["question_id"] for node in nodes} == {"q1"}
    assert is_error(malt("show", "arith", "q9"), "q9")


def test_an_intact_version_verifies(malt: Malt, version: DatasetVersion) -> None:
    assert malt("verify", "arith").code == 0
    found = malt("verify", "arith", "--json").json
    assert {**found, "not_checked": []} == {"version": "arith@v1", "holds": True, "problems": [], "not_checked": []}
    unchecked = ["that models wrote these texts", "the judge's tokens and cost"]
    assert [line.partition(",")[0] for line in found["not_checked"]] == unchecked


def test_a_changed_version_does_not_verify(malt: Malt, version: DatasetVersion) -> None:
    with (version.path / "README.md").open("a") as card:
        card.write("more\n")
    said = malt("verify", "arith")
    assert said.code == 1
    assert "README.md" in said.err
    assert said.out == ""
    assert malt("verify", "arith", "--json").json["holds"] is False


@pytest.mark.parametrize("reference", ["\x1b[2Jx", "\u202ex"])
def test_an_error_does_not_steer_the_terminal(malt: Malt, reference: str) -> None:
    said = malt("show", reference)
    assert is_error(said)
    assert reference[0] not in said.err


COMMAND = f"{shlex.quote(sys.executable)} -c 'from malt.cli.main import main; main()'"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=PROJECT, check=False)


@pytest.mark.parametrize("arguments", ["datasets", "datasets --json", "--help"])
def test_output_may_be_piped_into_a_reader_that_stops_early(version: DatasetVersion, arguments: str) -> None:
    assert shell(f"{COMMAND} {arguments} | head -0").stderr == ""


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), (">&- 2>&-", 0), ("<&-", 0)])
def test_a_command_runs_without_anywhere_to_write(version: DatasetVersion, closed: str, code: int) -> None:
    done = shell(f"{COMMAND} datasets {closed}")
    assert (done.returncode, done.stderr) == (code, "")


def test_json_is_json_in_every_encoding(settings: Settings) -> None:
    publish_questions(["Zoë 😀"], settings.datasets_dir)
    done = shell(f"PYTHONIOENCODING=ascii {COMMAND} show arith 'Zoë 😀' --json")
    assert json.loads(done.stdout)["question_id"] == "Zoë 😀"
    assert "Zo" in shell(f"PYTHONIOENCODING=ascii {COMMAND} show arith 'Zoë 😀'").stdout
