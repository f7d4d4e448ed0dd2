"""What each model is worth in each role, from all combinations of a tournament: main effects, paired by question."""

from collections.abc import Mapping, Sequence

import numpy as np

from malt.config.roles import PLAYERS
from malt.evaluation.statistics import DRAWS, Scores, bootstrap, mean_scores
from malt.evaluation.summary import Worth
from malt.evaluation.systems import Entrant


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
            worths = {model: measure_worth(own, whole, draws) for model, own in of_model.items()}
            ranked[role.value] = dict(sorted(worths.items(), key=lambda item: -item[1].worth))
    return ranked


def measure_worth(own: Scores, whole: Scores, draws: int) -> Worth:
    """Return what a model adds to the mean of its role, on the questions that all systems answered."""
    known = ~np.isnan(own - whole)
    gains = (own - whole)[known]
    if not len(gains):
        return Worth(accuracy=float("nan"), worth=0.0, low=0.0, high=0.0, questions=0)
    low, high = bootstrap(gains, draws)
    return Worth(
        accuracy=float(own[known].mean()), worth=float(gains.mean()), low=low, high=high, questions=int(known.sum())
    )
