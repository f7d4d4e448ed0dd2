"""Random evaluations with known truth: every question has its own difficulty and several answers."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from malt.evaluation.statistics import Scores

QUESTIONS, CHAINS = 150, 3
DIFFICULTY = 0.6
"""Spread of the questions' difficulties: the parameters of their Beta distribution add up to 1 / this."""


def chances(random: Generator, mean: float, questions: int) -> Scores:
    """Draw the probability of a right answer for each question."""
    drawn: Scores = random.beta(mean / DIFFICULTY, (1 - mean) / DIFFICULTY, questions)
    return drawn


def scores(random: Generator, chance: Scores, chains: int = CHAINS) -> Scores:
    """Draw the share of right answers to each question."""
    return random.binomial(chains, chance) / chains


def evaluations(count: int, mean: float, gain: float, questions: int = QUESTIONS) -> Iterator[tuple[Scores, Scores]]:
    """Draw evaluations of two systems on the same questions, the second `gain` better on every one's logit scale."""
    random = np.random.default_rng(7)
    for _ in range(count):
        first = chances(random, mean, questions)
        second = 1 / (1 + np.exp(-gain) * (1 - first) / np.maximum(first, 1e-12))
        yield scores(random, first), scores(random, second)


def true_gain(mean: float, gain: float) -> float:
    """Return the true difference in accuracy between the two systems, over a large sample of questions."""
    first = chances(np.random.default_rng(1), mean, 2_000_000)
    second = 1 / (1 + np.exp(-gain) * (1 - first) / np.maximum(first, 1e-12))
    return float((second - first).mean())


def votes(random: Generator, chance: Scores) -> Scores:
    """Draw the outcome of one vote for each question."""
    return (random.random(len(chance)) < chance).astype(float)
