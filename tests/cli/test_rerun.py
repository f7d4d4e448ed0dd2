"""`malt rerun` and `malt run --refresh`: the work of the deployment, from the command line and without Prefect."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.loader import load_spec
from malt.datasets.version.dataset_version import open_version
from malt.engine.job import read_job
from malt.engine.runner import run_job
from malt.llm.client.session import close_sessions
from tests import mishaps
from tests.configs import write_config
from tests.providers import ScriptedProvider


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """A dataset of three questions, grown once."""
    path = write_config(tmp_path, provider, 3)
    grow(path)
    return path


def grow(config: Path) -> None:
    """Make a dataset without Prefect, which would keep the settings of this process's first test."""
    asyncio.run(run_job(read_job(load_spec(config))))
    close_sessions()


def asked_by(provider: ScriptedProvider, *command: str) -> Counter[str]:
    before = provider.request_count
    assert exit_code([*command]) == 0
    close_sessions()
    return Counter(asked.model for asked in provider.requests[before:])


@pytest.mark.usefixtures("config")
def test_nothing_is_asked_where_nothing_is_missing(provider: ScriptedProvider) -> None:
    assert asked_by(provider, "rerun", "sums") == {}


@pytest.mark.usefixtures("config")
def test_a_refreshed_role_of_one_question_is_asked_anew_and_the_rest_is_not(
    provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    question = str(open_version("sums").questions["question_id"].iloc[0])
    command = ("rerun", "sums", "--questions", question, "--roles", "refiner", "--refresh", "--json")
    assert asked_by(provider, *command) == {"refiner": 9}
    summary = json.loads(capsys.readouterr().out)
    assert (summary["version"], summary["created"]) == (2, True)


def test_a_run_can_refresh_roles_and_needs_no_rerun_for_it(config: Path, provider: ScriptedProvider) -> None:
    assert asked_by(provider, "run", str(config), "--refresh", "refiner") == {"refiner": 27}


def test_plan_quotes_a_refresh_without_any_request(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    question = str(open_version("sums").questions["question_id"].iloc[0])
    anew = (str(config), "--refresh", "refiner", "--questions", question)
    assert asked_by(provider, "plan", *anew, "--json") == {}
    quoted = json.loads(capsys.readouterr().out)
    assert (quoted["requests"], quoted["completions"], quoted["refresh"]) == (9, 27, ["refiner"])
    assert asked_by(provider, "plan", *anew) == {}
    assert "sums: 1 question; still to be asked, refiner again, with texts that may" in capsys.readouterr().out
    assert asked_by(provider, "run", *anew).total() == quoted["requests"]


def test_a_refresh_also_asks_again_for_answers_of_a_fallback(tmp_path: Path, provider: ScriptedProvider) -> None:
    path = write_config(tmp_path, provider, 1)
    spare = f'{{ model = "openai/spare", api_base = "{provider.url}", api_key_env = "TEST_KEY" }}'
    path.write_text(path.read_text().replace("[roles.refiner]\n", f"[roles.refiner]\nfallbacks = [{spare}]\n"))
    provider.faults = mishaps.when(lambda asked: asked.model == "refiner", mishaps.context_overflow())
    grow(path)
    assert sum(asked.model == "spare" for asked in provider.requests) == 9
    provider.faults = None
    assert asked_by(provider, "run", str(path), "--refresh", "refiner") == {"refiner": 9}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ("rerun", "sums", "--roles", "critic"),
            "'critic' is no role; roles are generator, verifier",
        ),
        (("rerun", "sums", "--questions", "q-none"), "no question 'q-none' in the dataset"),
        (("rerun", "nothing"), "nothing"),
        (("plan", "sums.toml", "--questions", "q-1"), "--questions needs --refresh"),
    ],
)
@pytest.mark.usefixtures("config")
def test_an_impossible_rerun_is_refused(
    command: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*command]) == 2
    assert told in capsys.readouterr().err
