"""The quote of an improvement equals a count by hand; it needs no request and no torch."""

import json
from pathlib import Path

import pytest

from malt.cli.main import exit_code
from malt.config.loader import load_spec
from malt.config.settings import Settings
from malt.improvement.improve import ImprovementPlan, plan_improvement
from malt.llm.store.samples import Store
from tests.improvement.sevens import BRANCHING, HELD_OUT, OTHERS, TRAIN, write_config
from tests.providers import ScriptedProvider

TREES = len(TRAIN) * (1 + BRANCHING + BRANCHING**2)
REFINED = len(HELD_OUT) * BRANCHING
ANSWERS = len(HELD_OUT) + 2 * REFINED
BESIDE = 2 * len(OTHERS) * (1 + 2 * BRANCHING)


@pytest.fixture
def config(tmp_path: Path, provider: ScriptedProvider) -> Path:
    others = '[improve.beside]\nothers = { source = "others.jsonl" }'
    return write_config(tmp_path, provider, tmp_path / "no-base", others)


def quote(config: Path, *overrides: str) -> ImprovementPlan:
    settings = Settings()
    with Store(settings.store) as store:
        return plan_improvement(load_spec(config, overrides), settings, store)


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_round_requests_its_trees_and_the_answers_of_its_trained_models(
    rounds: int, config: Path, provider: ScriptedProvider
) -> None:
    quoted = quote(config, f"improve.rounds={rounds}")
    first, later, end = (
        {step: part.requests for step, part in steps.items()} for steps in (quoted.first, quoted.later, quoted.end)
    )
    assert first == {"trees": TREES, "held-out questions, untrained": ANSWERS, "held-out questions": ANSWERS}
    assert later == {"trees": TREES, "held-out questions": ANSWERS}
    assert end == {"comparison": 2 * REFINED, "others": BESIDE}
    assert quoted.requests == rounds * (TREES + ANSWERS) + ANSWERS + 2 * REFINED + BESIDE
    assert provider.request_count == 0


def test_the_command_line_prints_the_quote_and_its_obstacles(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["improve", str(config), "--rounds", "2", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 2
    assert exit_code(["improve", str(config), "--rounds", "2", "--plan"]) == 0
    said = capsys.readouterr()
    assert f"{2 * (TREES + ANSWERS) + ANSWERS + 2 * REFINED + BESIDE:,}" in said.out
    assert "round 1: grown by openai/generator, openai/refiner, openai/verifier, but the model" in said.err
    assert f"there is no file {config.parent / 'no-base'}" in said.err
