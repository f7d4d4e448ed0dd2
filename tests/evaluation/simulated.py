"""Evaluations drawn by chance, of which the truth is known: questions of their own difficulty, several answers each."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from malt.evaluation.statistics import Scores

QUESTIONS, CHAINS = 150, 3
DIFFICULTY = 0.6
"""How much the questions' chances differ: the sum of the parameters of their Beta distribution is 1 / this."""


def chances(random: Generator, mean: float, questions: int) -> Scores:
    """Draw how likely each question's answer is right."""
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
    """Return how much better the second system is over all questions there are."""
    first = chances(np.random.default_rng(1), mean, 2_000_000)
    second = 1 / (1 + np.exp(-gain) * (1 - first) / np.maximum(first, 1e-12))
    return float((second - first).mean())


def votes(random: Generator, chance: Scores) -> Scores:
    """Draw one vote a question."""
    return (random.random(len(chance)) < chance).astype(float)
