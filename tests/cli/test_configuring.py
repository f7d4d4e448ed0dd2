"""`malt init` writes a config that runs; `malt config` explains its keys."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from tests.providers import ScriptedProvider

Said = tuple[int, str, str]


@pytest.fixture
def malt(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command in a folder with a question file; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.csv").write_text("Frage,Antwort\n2+3?,5\n4*4?,16\n")

    def run(*arguments: str) -> Said:
        code = exit_code([*arguments])
        return code, *capsys.readouterr()

    return run


def test_a_config_is_written_with_what_the_file_suggests_and_runs(
    malt: Callable[..., Said], provider: ScriptedProvider
) -> None:
    code, out, err = malt("init", "--questions", "sums.csv", "--model", "openai/m", "--api-base", provider.url)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "sums.toml is written for 2 questions. Next:"
    spec = load_spec(Path("sums.toml"))
    assert (spec.name, spec.questions.question, spec.questions.ground_truth) == ("sums", "Frage", "Antwort")
    assert spec.evaluator.kind == ("number",)
    assert {spec.roles[role].api_base for role in PLAYERS} == {provider.url}
    code, out, _ = malt("plan", "sums.toml", "--json")
    assert (code, json.loads(out)["requests"]) == (0, 26)


def test_flags_can_set_everything(malt: Callable[..., Said]) -> None:
    code, _, _ = malt(
        "init", "made/my.toml", "--questions", "sums.csv", "--question", "Frage", "--answer", "Antwort", "--name", "x",
        "--model", "groq/llama", "--api-base", "", "--api-key-env", "MY_KEY", "--grader", "number", "--grader", "llm",
    )  # fmt: skip
    spec = load_spec(Path("made/my.toml"))
    assert (code, spec.name, spec.evaluator.kind) == (0, "x", ("number", "llm"))
    assert (spec.evaluator.model, spec.roles.generator.api_key_env) == ("groq/llama", "MY_KEY")
    assert spec.questions.source == "sums.csv"


def test_a_file_without_rows_is_refused(malt: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("Frage,Antwort\n")
    code, _, err = malt("init", "--questions", "empty.csv")
    assert code == 2
    assert err == "error: --questions = empty.csv: no questions in it; give a file with one question a row\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "question file: not given, and no terminal to ask on; give it with --questions"),
        (("--questions", "none.csv"), "--questions = none.csv: no such file"),
        (("--questions", "sums.csv", "--question", "Q"), "no column 'Q'; it has: Frage, Antwort"),
        (
            ("--questions", "sums.csv", "--answer", "Frage"),
            "--question and --answer are both Frage; name the column of the reference answer",
        ),
        (("--questions", "sums.csv", "--grader", "guess"), "--grader guess: no such kind of grader"),
        (("--questions", "sums.csv", "--name", "A B"), "name = "),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(
    malt: Callable[..., Said], arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = malt("init", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert [path.name for path in Path().iterdir()] == ["sums.csv"]


def test_a_file_without_a_column_to_propose_is_refused_with_its_columns(
    malt: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "semicolons.csv").write_text("Frage;Antwort\n2+3?;5\n")
    code, _, err = malt("init", "--questions", "semicolons.csv")
    assert code == 2
    assert "not given, and no terminal to ask on; give it with --answer; the file's columns: Frage;Antwort\n" in err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "nonsense",
            "error: --model: model 'nonsense' names no provider that LiteLLM knows; write it as one of openai/",
        ),
        ("nonsense/m", "error: --model: model 'nonsense/m' names no provider"),
        (" ", "error: --model: model ' ' names no provider"),
        ("embeddedly", "error: --model: model 'embeddedly' names no provider"),
        ("none@v3", "error: --model: model 'none@v3': no model 'none' in "),
        ("embedded/none.gguf", "error: --model: model 'embedded/none.gguf': there is no file "),
    ],
)
def test_a_model_that_is_not_known_is_refused_before_anything_is_written(
    malt: Callable[..., Said], model: str, said: str
) -> None:
    code, out, err = malt("init", "made/my.toml", "--questions", "sums.csv", "--model", model)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert [path.name for path in Path().iterdir()] == ["sums.csv"]


def test_an_existing_config_stays_unless_forced(malt: Callable[..., Said]) -> None:
    Path("sums.toml").write_text("mine")
    code, _, err = malt("init", "--questions", "sums.csv")
    assert (code, "--force" in err, Path("sums.toml").read_text()) == (2, True, "mine")
    assert malt("init", "--questions", "sums.csv", "--force")[0] == 0
    assert malt("init", "--questions", "sums.csv", "--force", "--grader", "guess")[0] == 2
    assert load_spec(Path("sums.toml")).evaluator.kind == ("number",)


def test_a_config_is_written_through_no_link(malt: Callable[..., Said], tmp_path: Path) -> None:
    Path("sums.toml").symlink_to(tmp_path / "nowhere")
    assert malt("init", "--questions", "sums.csv")[0] == 2
    assert malt("init", "--questions", "sums.csv", "--force")[0] == 0
    assert not (tmp_path / "nowhere").exists()
    assert Path("sums.toml").is_file()


def test_init_on_a_terminal_asks_and_proposes(tmp_path: Path) -> None:
    (tmp_path / "sums.csv").write_text("question,answer\n2+3?,5\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from malt.cli.main import main; main()", "init"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.write(ours, b"sums.csv\n\n\n\n\nasked\n")
        out, err = process.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert b"Graders (the reference answers are numbers) [number]" in err
    assert b"asked.toml is written for 1 question." in out
    roles = load_spec(tmp_path / "asked.toml").roles
    assert [(roles[role].model, roles[role].max_tokens) for role in PLAYERS] == [("embedded", 256)] * 3


def test_init_with_a_closed_stdin_names_the_missing_option(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'from malt.cli.main import main; main()' init <&-"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: question file: not given, and no terminal to ask on; give it with --questions\n",
    )


def test_a_key_is_explained_and_the_schema_is_the_forms(malt: Callable[..., Said]) -> None:
    code, out, _ = malt("config", "--explain", "credit.threshold")
    assert (code, out.splitlines()[0]) == (0, "credit.threshold")
    assert json.loads(malt("config", "--schema")[1]) == json.loads(json.dumps(RunSpec.model_json_schema()))
    assert malt("config", "--explain", "x.y")[0] == 2
    assert len(json.loads(malt("config", "--json")[1])["keys"]) > 100
