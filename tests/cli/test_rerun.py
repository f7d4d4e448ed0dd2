"""`malt rerun` and `malt run --refresh`: what the deployment does, from the command line and without Prefect."""

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
from tests.configs import write_config
from tests.providers import ScriptedProvider


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    """A dataset of three questions, grown once."""
    path = write_config(tmp_path, provider, 3)
    asyncio.run(run_job(read_job(load_spec(path))))
    close_sessions()
    return path


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


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ("rerun", "sums", "--roles", "critic"),
            "'critic' is no role; roles are generator, verifier",
        ),
        (("rerun", "sums", "--questions", "q-none"), "no question 'q-none' in the dataset"),
        (("rerun", "nothing"), "nothing"),
    ],
)
@pytest.mark.usefixtures("config")
def test_what_cannot_be_asked_again_is_said(
    command: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*command]) == 2
    assert told in capsys.readouterr().err
