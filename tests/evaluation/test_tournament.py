"""Tournaments and races: every subtree is asked once, planted rankings are found, and no possible winner is dropped."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from malt.config.evaluate import SystemSpec
from malt.config.roles import PLAYERS
from malt.evaluation.evaluate import evaluate
from malt.evaluation.statistics import Scores, find_losers, order_questions, plan_rounds, rank_models
from malt.evaluation.summary import Choice
from malt.evaluation.systems import Entrant
from malt.questions.question import Question
from tests.evaluation.planted import CHAINS, QUESTIONS, planted_spec
from tests.providers import ScriptedProvider

TOURNAMENT = (
    "[evaluate.tournament]\n"
    'generator = ["openai/generator", "openai/better"]\n'
    'verifier = ["openai/verifier", "openai/verifier-2"]\n'
    'refiner = ["openai/refiner", "openai/better"]\n'
)
MODELS = ("a", "b", "c", "d")
GAIN = 0.12
"""Difference in the probability of a right answer between neighbours in the ranking."""


def test_a_tournament_asks_every_subtree_once_and_says_what_to_choose_under_a_budget(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    summary = evaluate(planted_spec(tmp_path, provider, TOURNAMENT)).summary
    assert len(summary.systems) == 8
    assert provider.request_count == QUESTIONS * (2 * 1 + 2 * 2 * CHAINS + 2 * 2 * 2 * CHAINS)
    assert list(summary.tournament["refiner"]) == ["better", "refiner"]
    best, other = summary.tournament["refiner"].values()
    assert best.accuracy == 1.0
    assert best.worth == pytest.approx(-other.worth)
    assert best.low < best.worth < best.high
    check_frontier(summary.frontier)


def check_frontier(frontier: Sequence[Choice]) -> None:
    """Check that each choice that costs more tokens is more accurate."""
    tokens = [choice.tokens for choice in frontier]
    accuracies = [choice.cell.accuracy or 0.0 for choice in frontier]
    assert tokens == sorted(tokens)
    assert accuracies == sorted(set(accuracies))
    assert (frontier[-1].cell.accuracy, frontier[-1].way) == (1.0, "SA")  # a generator that is always right


def draw_tournament(random: np.random.Generator, questions: int) -> tuple[list[Entrant], dict[str, Scores]]:
    """Draw votes of all combinations of four models a role; `a` is the best one everywhere."""
    ability = random.beta(2, 2, questions)
    field, scores = [], {}
    for chosen in product(range(len(MODELS)), repeat=3):
        models = dict(zip(PLAYERS, (MODELS[each] for each in chosen), strict=True))
        entrant = Entrant("/".join(models.values()), SystemSpec(), models)
        field.append(entrant)
        chance = np.clip(ability + GAIN * (1.5 * len(chosen) - sum(chosen)) / 3, 0, 1)
        scores[entrant.name] = random.binomial(CHAINS, chance) / CHAINS
    return field, scores


def test_a_planted_ranking_of_four_models_a_role_is_found_in_95_percent_of_tournaments() -> None:
    random, simulated = np.random.default_rng(19), 40
    found = 0
    for _ in range(simulated):
        ranked = rank_models(*draw_tournament(random, 200), draws=10)
        found += all(list(models) == list(MODELS) for models in ranked.values())
    assert found >= 0.95 * simulated


def test_a_race_drops_who_cannot_win_and_says_so(tmp_path: Path, provider: ScriptedProvider) -> None:
    systems = 'race = true\nmeasure = "sa"\nchains = 3\nbaseline = "star"\n'
    systems += '[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n[evaluate.systems.plain]\n'
    version = evaluate(planted_spec(tmp_path, provider, systems, questions=80))
    summary = version.summary
    assert plan_rounds(80) == [20, 40, 80]
    assert summary.dropped == {"plain": 20}
    assert summary.systems["star"].sa.questions == 80
    assert provider.request_count == (80 + 20) * (1 + 2 * CHAINS)
    assert summary.differences["plain"].questions == 20
    assert "at most 5 % of races" in (version.path / "README.md").read_text()
    asked = provider.request_count
    again = evaluate(planted_spec(tmp_path, provider, systems, questions=80))
    assert (again.created, provider.request_count) == (False, asked)


def test_a_best_system_is_dropped_in_at_most_five_percent_of_races() -> None:
    """Four systems, the best one by two points; the race decides after every round."""
    random, races, lost, questions = np.random.default_rng(23), 300, 0, 320
    for _ in range(races):
        ability = random.beta(2, 2, questions)
        scores = {name: random.binomial(3, np.clip(ability + gain, 0, 1)) / 3 for name, gain in
                  (("best", 0.02), ("second", 0.0), ("third", 0.0), ("last", -0.2))}  # fmt: skip
        racing = dict(scores)
        for count in plan_rounds(questions)[:-1]:
            losers = find_losers({name: own[:count] for name, own in racing.items()}, len(plan_rounds(questions)), 4)
            racing = {name: own for name, own in racing.items() if name not in losers}
        lost += "best" not in racing
        assert "last" not in racing
    assert lost <= 0.05 * races


def test_a_race_takes_questions_in_an_order_of_its_own() -> None:
    questions = [Question(question_id=f"q{i}", question="?", ground_truth="1") for i in range(50)]
    ordered = order_questions(questions)
    assert ordered != questions
    assert order_questions(questions[::-1]) == ordered
