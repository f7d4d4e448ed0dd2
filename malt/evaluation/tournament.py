"""Tournaments: what each model is worth in each role, and races that drop systems early.

Worth is a main effect over all combinations, paired by question. In a race all systems are asked a few questions, then
those that can still win more and more. A system is dropped when the upper end of its paired difference to the leader is
below zero, at a level that is shared among all looks and systems (Bonferroni). So a system that is truly best is
dropped in at most 5 % of races. This is successive halving (Karnin et al. 2013) in how the questions grow, and
fixed-confidence racing in whom it drops.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from malt.canonical_json import digest
from malt.config.roles import PLAYERS
from malt.evaluation.statistics import DRAWS, LEVEL, Scores, bootstrap, mean_scores
from malt.evaluation.summary import Worth
from malt.evaluation.systems import Entrant
from malt.questions.question import Question


def rank_models(
    field: Sequence[Entrant], scores: Mapping[str, Scores], draws: int = DRAWS
) -> dict[str, dict[str, Worth]]:
    """Return the worth of each model in each role that several play, the best one first."""
    entered = [entrant for entrant in field if entrant.name in scores]
    if not entered:
        return {}
    whole = mean_scores([scores[entrant.name] for entrant in entered])
    ranked: dict[str, dict[str, Worth]] = {}
    for role in PLAYERS:
        models = list(dict.fromkeys(entrant.models[role] for entrant in entered))
        if len(models) > 1:
            of_model = {
                model: mean_scores([scores[each.name] for each in entered if each.models[role] == model])
                for model in models
            }
            worths = {model: _measure_worth(own, whole, draws) for model, own in of_model.items()}
            ranked[role.value] = dict(sorted(worths.items(), key=lambda item: -item[1].worth))
    return ranked


def _measure_worth(own: Scores, whole: Scores, draws: int) -> Worth:
    """Return what a model adds to the mean of its role, on the questions that all systems answered."""
    known = ~np.isnan(own - whole)
    gains = (own - whole)[known]
    if not len(gains):
        return Worth(accuracy=float("nan"), worth=0.0, low=0.0, high=0.0, questions=0)
    low, high = bootstrap(gains, draws)
    return Worth(
        accuracy=float(own[known].mean()), worth=float(gains.mean()), low=low, high=high, questions=int(known.sum())
    )


# Races.

_FIRST = 20
"""Questions of the first round, at least."""


def plan_rounds(questions: int) -> list[int]:
    """Return how many questions have been asked after each round: each time twice as many, all of them last."""
    rounds = [questions]
    while rounds[0] // 2 >= _FIRST:
        rounds.insert(0, rounds[0] // 2)
    return rounds


def order_questions(questions: Sequence[Question]) -> list[Question]:
    """Order questions by a hash of their ids: a file may have the easy ones first."""
    return sorted(questions, key=lambda question: digest(["race", question.question_id]))


def find_losers(scores: Mapping[str, Scores], looks: int, systems: int) -> dict[str, float]:
    """Return the systems that cannot win any more, and the upper end of what each has over the leader.

    `scores` are those of the systems still in the race; `systems` is how many began it, `looks` how often they are
    looked at.
    """
    means = {name: float(np.nanmean(own)) for name, own in scores.items() if not np.isnan(own).all()}
    if not means:
        return {}
    leader = max(means, key=means.__getitem__)
    level = LEVEL / (looks * max(systems - 1, 1))
    bounds = {name: _bound_difference(scores[name] - scores[leader], level) for name in means if name != leader}
    return {name: bound for name, bound in bounds.items() if bound < 0}


def _bound_difference(differences: Scores, level: float) -> float:
    """Return the upper end of a mean difference's one-sided interval."""
    from scipy.stats import t

    known = differences[~np.isnan(differences)]
    if len(known) < 2 or np.ptp(known) == 0:
        return float("inf")
    error = known.std(ddof=1) / np.sqrt(len(known))
    return float(known.mean() + t.ppf(1 - level, len(known) - 1) * error)
