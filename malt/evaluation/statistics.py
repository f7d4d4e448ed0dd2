"""Statistics of an evaluation: pure functions over one score a question. The question is the unit everywhere.

A question's score is the share of a system's answers to it that are right, over chains and seeds: answers to one
question are correlated, so they form one cluster. `nan` is an unknown score; its question is left out, in
paired comparisons for both systems.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from malt.canonical_json import digest
from malt.config.roles import PLAYERS
from malt.evaluation.summary import Cell, Worth
from malt.evaluation.systems import Entrant
from malt.questions.question import Question
from malt.trees.credit import Interval, wilson

Scores = NDArray[np.float64]
"""One score a question, in the questions' order."""

DRAWS = 10_000
"""Number of draws of a bootstrap, or of a sign-flip test."""
_SEED = 2412_01928
"""Seed of all draws, so that the same answers give the same intervals."""
LEVEL, POWER = 0.05, 0.80
_USUAL_DISCORDANCE = 0.20
"""Assumed share of questions on which two systems differ, where it is not known."""


class Difference(NamedTuple):
    """Difference of two systems' accuracies on the same questions."""

    difference: float
    low: float
    high: float
    p: float
    questions: int


def estimate(scores: Scores) -> Cell:
    """Average over questions; the standard error allows for correlated answers to one question.

    The interval is Wilson's, for the number of independent answers that would have this standard error.
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return Cell(accuracy=None, stderr=None, low=None, high=None, questions=0)
    mean = float(known.mean())
    stderr = _standard_error(known)
    low, high = wilson(mean, _effective_answers(mean, stderr, len(known)))
    return Cell(accuracy=mean, stderr=stderr, low=low, high=high, questions=len(known))


def _standard_error(known: Scores) -> float | None:
    """Return the standard error of a mean over questions; None for a single question."""
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None


def _effective_answers(mean: float, stderr: float | None, questions: int) -> float:
    """Return the number of independent answers with this standard error; that of questions where none varies."""
    if not stderr or not 0 < mean < 1:
        return questions
    return max(1.0, mean * (1 - mean) / stderr**2)


def paired_difference(scores: Scores, baseline: Scores, level: float = 1 - LEVEL) -> Difference | None:
    """Compare two systems on the questions with a known score for both; None where there is none."""
    differences = (scores - baseline)[~np.isnan(scores - baseline)]
    if not len(differences):
        return None
    interval = bootstrap(differences, level=level)
    return Difference(float(differences.mean()), *interval, paired_test(differences), len(differences))


def bootstrap(values: Scores, draws: int = DRAWS, level: float = 1 - LEVEL) -> Interval:
    """Return the bootstrap interval of a mean over questions, of 95 % by default.

    Its percentiles are those at which the interval of a normal mean is Student's: otherwise few questions give an
    interval that is too narrow (Hesterberg 2015). Where all questions have one value, it is that value plus and minus
    the exact binomial bound of an outcome that was never seen.
    """
    from scipy.stats import norm, t

    tail = (1 - level) / 2
    distinct, counts = np.unique(values.round(12), return_counts=True)
    count = len(values)
    if len(distinct) == 1:
        unseen = 1 - tail ** (1 / count)
        return Interval(max(float(distinct[0]) - unseen, -1.0), min(float(distinct[0]) + unseen, 1.0))
    # Shares of a few answers take few values, so a draw is one multinomial over them.
    drawn = np.random.default_rng(_SEED).multinomial(count, counts / count, size=draws)
    tail = norm.cdf(np.sqrt(count / (count - 1)) * t.ppf(tail, count - 1))
    low, high = np.quantile(drawn @ distinct / count, [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired_test(differences: Scores, draws: int = DRAWS) -> float:
    """Return the p-value of a sign-flip test: between equal systems, each difference is as likely with either sign.

    So equal systems have p below 0.05 in at most 5 % of tests, however differences are distributed. For single votes it
    is McNemar's exact test; where differences have several sizes it is simulated, with p at least 1 / (1 + draws).
    """
    from scipy.stats import binomtest

    parted = differences[np.abs(differences) > 1e-9]
    sizes, counts = np.unique(np.abs(parted).round(12), return_counts=True)
    if len(sizes) < 2:
        return float(binomtest(int((parted > 0).sum()), len(parted)).pvalue) if len(parted) else 1.0
    random = np.random.default_rng(_SEED)
    sums = sum(
        size * (2 * random.binomial(count, 0.5, draws) - count) for size, count in zip(sizes, counts, strict=True)
    )
    reached = int((np.abs(sums) >= abs(parted.sum()) - 1e-9).sum())
    return (1 + reached) / (1 + draws)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number (Holm 1979); uniformly better than Bonferroni, under any dependence."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - place)))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def smallest_difference(questions: int, discordance: float = _USUAL_DISCORDANCE) -> float | None:
    """Return the smallest difference that McNemar's test finds with 80 % power; None where these questions are too few.

    `discordance` is the share of questions on which two votes differ (Connor 1987).
    """
    from scipy.optimize import brentq

    if questions < 1 or questions_needed(discordance, discordance) > questions:
        return None
    found = brentq(lambda difference: questions_needed(difference, discordance) - questions, 1e-6, discordance)
    return float(found)


def questions_needed(difference: float, discordance: float = _USUAL_DISCORDANCE) -> float:
    """Return the number of questions that show a difference with 80 % power, two-sided at 5 %."""
    from scipy.stats import norm

    alpha, beta = norm.ppf(1 - LEVEL / 2), norm.ppf(POWER)
    spread = alpha * np.sqrt(discordance) + beta * np.sqrt(discordance - difference**2)
    return float(spread**2 / difference**2)


def discordance(scores: Scores, baseline: Scores) -> float | None:
    """Return the share of questions on which two systems' votes differ."""
    differences = (scores - baseline)[~np.isnan(scores - baseline)]
    return float((differences != 0).mean()) if len(differences) else None


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Average several systems' scores question by question; nan where one of them is."""
    averaged: Scores = np.mean(np.stack(list(scores)), axis=0)
    return averaged


def rank_models(
    field: Sequence[Entrant], scores: Mapping[str, Scores], draws: int = DRAWS
) -> dict[str, dict[str, Worth]]:
    """Return the worth of each model, the best first, in each role that several models play: its main effect over all
    combinations, paired by question.
    """
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
    """Return a model's mean less that of all systems, on the questions that all systems answered."""
    known = ~np.isnan(own - whole)
    gains = (own - whole)[known]
    if not len(gains):
        return Worth(accuracy=float("nan"), worth=0.0, low=0.0, high=0.0, questions=0)
    low, high = bootstrap(gains, draws)
    return Worth(
        accuracy=float(own[known].mean()), worth=float(gains.mean()), low=low, high=high, questions=int(known.sum())
    )


# Races: all systems are asked a few questions; those that can still win are asked more. The number of questions grows
# as in successive halving (Karnin et al. 2013); systems are dropped as in racing with a fixed confidence.

_FIRST = 20
"""Least number of questions of the first round, where there are so many."""


def plan_rounds(questions: int) -> list[int]:
    """Return the number of questions asked by the end of each round: about twice as many each time, at last all."""
    rounds = [questions]
    while rounds[0] // 2 >= _FIRST:
        rounds.insert(0, rounds[0] // 2)
    return rounds


def order_questions(questions: Sequence[Question]) -> list[Question]:
    """Order questions by a hash of their ids: a file may have the easy ones first."""
    return sorted(questions, key=lambda question: digest(["race", question.question_id]))


def find_losers(scores: Mapping[str, Scores], looks: int, systems: int) -> dict[str, float]:
    """Return the systems that can no longer win, and the upper bound of each one's difference to the leader.

    That bound is below zero, at a level that is divided among all looks and systems (Bonferroni): so a system that is
    truly best is dropped in at most 5 % of races.

    `scores` are those of the systems still in the race; `systems` is the number that began it, `looks` that of rounds.
    """
    means = {name: float(np.nanmean(own)) for name, own in scores.items() if not np.isnan(own).all()}
    if not means:
        return {}
    leader = max(means, key=means.__getitem__)
    level = LEVEL / (looks * max(systems - 1, 1))
    bounds = {name: _bound_difference(scores[name] - scores[leader], level) for name in means if name != leader}
    return {name: bound for name, bound in bounds.items() if bound < 0}


def _bound_difference(differences: Scores, level: float) -> float:
    """Return the one-sided upper bound of a mean difference."""
    from scipy.stats import t

    known = differences[~np.isnan(differences)]
    if len(known) < 2 or np.ptp(known) == 0:
        return float("inf")
    error = known.std(ddof=1) / np.sqrt(len(known))
    return float(known.mean() + t.ppf(1 - level, len(known) - 1) * error)
