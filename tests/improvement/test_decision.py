"""The decision to keep a round's models: good rounds are told from harmful ones, and hardly any is kept by chance."""

import numpy as np
import pytest

from malt.config.evaluate import ImproveSpec
from malt.evaluation.statistics import Scores
from malt.improvement.rounds import decide
from tests.evaluation.simulated import chances, evaluations, scores

ROUNDS, GAIN = 40, 0.25
"""Number of rounds, and the change on every question's logit scale: half of the rounds gain this much, half lose it."""
QUESTIONS, CHAINS = 1_500, 5
"""Enough to detect such a small gain: four points for questions of middle difficulty, one for easy and hard ones."""


def shifted(chance: Scores, gain: float) -> Scores:
    """Shift the chances by a gain on the logit scale."""
    shifted: Scores = 1 / (1 + np.exp(-gain) * (1 - chance) / np.maximum(chance, 1e-12))
    return shifted


def is_kept(candidate: Scores, current: Scores, spec: ImproveSpec) -> bool:
    return decide(candidate, current, spec).is_kept


def test_at_most_two_of_forty_rounds_are_decided_wrongly_and_the_best_is_kept() -> None:
    random, spec = np.random.default_rng(18), ImproveSpec()
    easy, right = chances(random, 0.3, QUESTIONS), 0
    kept, skills = -2.0, [-2.0]
    for does_good in random.permutation([True, False] * (ROUNDS // 2)):
        skills.append(kept + (GAIN if does_good else -GAIN))
        candidate, current = (scores(random, shifted(easy, skill), CHAINS) for skill in (skills[-1], kept))
        right += is_kept(candidate, current, spec) == does_good
        kept = skills[-1] if is_kept(candidate, current, spec) else kept
    assert right >= 38
    assert kept == max(skills)


@pytest.mark.parametrize(("level", "most"), [(0.95, 0.04), (0.8, 0.13)])
def test_candidates_that_are_no_better_are_kept_no_more_often_than_the_level_allows(level: float, most: float) -> None:
    spec = ImproveSpec(level=level)
    kept = [is_kept(second, first, spec) for first, second in evaluations(300, 0.4, 0.0)]
    assert np.mean(kept) <= most
    assert any(kept) or level == 0.95


def test_a_margin_asks_for_more_than_a_gain() -> None:
    first, second = next(evaluations(1, 0.3, 0.6))
    judged = decide(second, first, ImproveSpec())
    assert judged.is_kept
    assert judged.low is not None
    assert not is_kept(second, first, ImproveSpec(margin=judged.low))
    assert is_kept(second, first, ImproveSpec(margin=judged.low - 1e-6))


def test_a_candidate_without_known_scores_is_not_kept() -> None:
    unknown, known = np.full(3, np.nan), np.ones(3)
    judged = decide(unknown, known, ImproveSpec())
    assert (judged.is_kept, judged.difference, judged.questions) == (False, None, 0)


def test_a_gain_on_a_handful_of_questions_is_not_enough() -> None:
    """Three better questions out of three are no proof: the interval has a width even if all questions agree."""
    assert not is_kept(np.ones(3), np.zeros(3), ImproveSpec(margin=0.3))
    assert is_kept(np.ones(30), np.zeros(30), ImproveSpec(margin=0.3))
