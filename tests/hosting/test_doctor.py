"""`malt doctor`: everything that a run needs is tried once; failures are reported with their remedy."""

import json
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.llm.store.samples import Store
from tests.configs import write_config
from tests.providers import ScriptedProvider


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return write_config(tmp_path, provider, 2)


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[bool, str]]:
    told = json.loads(capsys.readouterr().out)
    return {check["subject"]: (check["works"], check["detail"]) for check in told["checks"]}


def test_each_endpoint_is_asked_once_for_a_few_tokens_and_nothing_is_stored(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["doctor", str(config), "--json"]) == 0
    assert sorted(asked.model for asked in provider.requests) == ["generator", "refiner", "verifier"]
    assert {asked.body["max_tokens"] for asked in provider.requests} == {16}
    assert all(works for works, _ in checks(capsys).values())
    with Store(Settings().store) as store:
        assert store.rows(["doctor"]) == {}


def test_a_model_that_serves_several_roles_is_asked_once(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [f"--set=roles.{role}.model=openai/one" for role in ("generator", "verifier", "refiner")]
    assert exit_code(["doctor", str(config), "--json", *same]) == 0
    assert provider.request_count == 1
    subjects = checks(capsys)
    assert subjects["generator, verifier, refiner"][1].startswith(f"openai/one at {provider.url} answers, in ")


def test_failed_checks_are_reported_and_the_others_still_run(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.key = "another"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert exit_code(["doctor", str(config), "--json"]) == 1
    told = checks(capsys)
    works, said = told["generator"]
    assert not works
    assert said.startswith(f"openai/generator at {provider.url} refused the key")
    assert "TEST_KEY (401)" in said
    assert not told["prefect"][0]
    assert "unset the variable" in told["prefect"][1]
    assert told["store"][0]
    assert told["questions and prompts"] == (True, "2 questions, each with a usable reference answer")
