"""`malt evaluate`, `malt evaluations`, and the plan of an evaluation by `malt plan`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from malt.cli.main import exit_code
from tests import mishaps
from tests.evaluation.planted import CHAINS, QUESTIONS, write_evaluation
from tests.providers import ScriptedProvider

SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    return write_evaluation(tmp_path, provider, SYSTEMS)


def told(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert exit_code([str(argument) for argument in (*arguments, "--json")]) == code
    return dict(json.loads(capsys.readouterr().out))


def test_evaluate_prints_the_documented_figures(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "evaluate", config)
    assert (said["evaluation"], said["version"]) == ("planted", 1)
    assert Path(said["path"], "answers.parquet").is_file()
    assert len(said["content_sha256"]) == 64
    for system in said["systems"].values():
        for cell in ("sa", "sa_mv", "ma", "ma_mv"):
            assert {"accuracy", "stderr", "low", "high"} <= system[cell].keys()
        assert {"tokens", "cost_usd"} <= system.keys()
    assert said["systems"].keys() == {"plain", "star"}
    assert {"difference", "low", "high", "p", "p_holm"} <= said["differences"]["star"].keys()
    assert said["requests"] == QUESTIONS * 2 * (1 + 2 * CHAINS)
    assert said["completions"] == QUESTIONS * 2 * 3 * CHAINS


@pytest.mark.parametrize(("chains", "way"), [(CHAINS, f"MA+MV@{CHAINS}"), (1, "MA")])
def test_the_table_of_differences_names_what_is_compared(
    config: Path, capsys: pytest.CaptureFixture[str], chains: int, way: str
) -> None:
    assert exit_code(["evaluate", str(config), "-s", f"evaluate.chains={chains}"]) == 0
    assert re.search(rf"^less plain +{re.escape(way)}, points \(95 %\)", capsys.readouterr().out, re.MULTILINE)


def test_a_second_evaluation_asks_nothing_and_prints_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (told(capsys, "evaluate", config) for _ in range(2))
    assert again["requests"] == 0
    assert again["cached_completions"] == first["completions"]
    same = ("version", "path", "content_sha256", "systems", "differences")
    assert [again[key] for key in same] == [first[key] for key in same]


def test_limit_takes_so_many_held_out_questions(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, "evaluate", config, "--limit", "2", "-s", "evaluate.chains=1")
    assert (said["questions"], said["chains"]) == (2, 1)
    assert provider.request_count == 2 * 2 * 3


def test_limit_takes_so_many_of_the_validation_split(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(
        config.read_text()
        .replace('source = "train.jsonl"', 'source = "heldout.jsonl"')
        .replace('questions = { source = "heldout.jsonl" }\n', "")
        + "[dataset]\nvalidation = 0.5\n"
    )
    assert told(capsys, "evaluate", config, "--limit", "2", "-s", "evaluate.chains=1")["questions"] == 2


@pytest.mark.parametrize(
    ("model", "said"), [("nonsense", "'nonsense' names no provider"), ("none@v3", "'none@v3': no model 'none'")]
)
def test_a_model_that_is_not_known_is_named_with_its_system_and_role(
    config: Path, capsys: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    assert exit_code(["evaluate", str(config), "-s", f"evaluate.systems.other.verifier.model={model}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: system 'other': roles.verifier.model: model {said}")


def test_plan_quotes_an_evaluation_without_asking_and_says_what_it_can_show(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    quoted = told(capsys, "plan", config)["evaluation"]
    assert provider.request_count == 0
    assert quoted["requests"] == QUESTIONS * 2 * (1 + 2 * CHAINS)
    assert quoted["smallest_difference"]["10 %"] is None
    assert quoted["questions_for_4_points"] == 979
    assert exit_code(["plan", str(config)]) == 0
    assert "questions show with 80 % power" in capsys.readouterr().out
    asked = told(capsys, "evaluate", config)["requests"]
    assert (provider.request_count, asked) == (quoted["requests"], quoted["requests"])
    assert told(capsys, "plan", config)["evaluation"]["requests"] == 0


def test_evaluations_lists_versions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = told(capsys, "evaluate", config)
    [listed] = told(capsys, "evaluations")["versions"]
    assert (listed["name"], listed["systems"]) == ("planted", ["plain", "star"])
    assert listed["content_sha256"] == made["content_sha256"]
    assert exit_code(["evaluations", "planted"]) == 0
    assert "evaluations/planted@v1" in capsys.readouterr().out
    assert exit_code(["evaluations", "other"]) == 2


def test_failed_requests_are_reported_with_exit_code_1(
    config: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.faults = lambda asked: mishaps.bad_request() if "What is 103 + 10" in asked.prompt else None
    assert exit_code(["evaluate", str(config)]) == 1
    said = capsys.readouterr()
    assert "evaluations/planted@v1" in said.out
    assert f"MA: multi-agent, the whole pipeline; +MV@{CHAINS}: majority vote of {CHAINS} chains" in said.out
    assert "generator sum-103: openai/generator at" in said.err


def test_a_config_without_an_evaluation_says_what_to_add(
    tmp_path: Path, provider: ScriptedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_evaluation(tmp_path, provider, "")
    config.write_text(config.read_text().partition("[evaluate]")[0])
    assert exit_code(["evaluate", str(config)]) == 2
    assert "the config has no [evaluate]; say there which questions" in capsys.readouterr().err
