"""Prints how often an evaluation's statistics are right, on simulated evaluations, and how fast answers come.

`python -m benchmarks.evaluation`: coverage of 95 % intervals, systems wrongly told apart (10,000 simulated evaluations
each), power at the planned difference (1,000 each). `--throughput QUESTIONS` also evaluates so many questions x 4
systems x 3 chains on a loopback provider.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from malt.evaluation.evaluate import evaluate
from malt.evaluation.statistics import bootstrap, estimate, paired_test, smallest_difference
from tests.evaluation import simulated
from tests.evaluation.planted import CHAINS, planted_spec, script
from tests.providers import ScriptedProvider

SIMULATED, TESTED = 1_000, 10_000
SYSTEMS = "".join(
    f'[evaluate.systems.s{number}]\nrefiner = {{ model = "openai/refiner-{number}" }}\n' for number in range(4)
)


def coverage_of_accuracy(mean: float, questions: int) -> float:
    """Share of intervals that hold the truth."""
    found = (estimate(first) for first, _ in simulated.evaluations(SIMULATED, mean, 0.0, questions))
    return float(np.mean([(each.low or 0.0) <= mean <= (each.high or 0.0) for each in found]))


def coverage_of_difference(mean: float, questions: int) -> float:
    """Share of intervals that hold the true difference."""
    truth = simulated.true_gain(mean, 0.4)
    pairs = simulated.evaluations(SIMULATED, mean, 0.4, questions)
    intervals = (bootstrap(second - first) for first, second in pairs)
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


def told_apart(questions: int) -> tuple[float, float]:
    """Shares of equal systems that the test of votes, and that of single answers, tell apart."""
    random, votes, singly = np.random.default_rng(11), 0, 0
    for _ in range(TESTED):
        chance = simulated.chances(random, 0.5, questions)
        votes += paired_test(simulated.votes(random, chance) - simulated.votes(random, chance)) < 0.05
        parted = simulated.scores(random, chance) - simulated.scores(random, chance)
        singly += paired_test(parted, draws=1_000) < 0.05
    return votes / TESTED, singly / TESTED


def power(questions: int) -> float:
    """Share of planned differences that McNemar's test finds at 20 % discordance."""
    difference = smallest_difference(questions) or 0.0
    shares = [(0.2 + difference) / 2, (0.2 - difference) / 2, 0.8]
    drawn = np.random.default_rng(3).multinomial(questions, shares, size=SIMULATED)
    return float(np.mean([paired_test(np.repeat([1.0, -1.0], counts[:2])) < 0.05 for counts in drawn]))


def throughput(questions: int) -> None:
    """Evaluate on a loopback provider, then again from the store."""
    os.environ["TEST_KEY"] = "k"
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider(script=script) as provider:
        os.environ["MALT_DATA_DIR"] = str(Path(folder) / "data")
        spec = planted_spec(Path(folder), provider, SYSTEMS, questions)
        for name in ("asked", "from the store"):
            before, started = provider.request_count, time.perf_counter()
            evaluate(spec)
            took, requests = time.perf_counter() - started, provider.request_count - before
            print(
                f"| {questions:,} x 4 x {CHAINS}, {name} | "
                f"{requests:,} requests, {took:.1f} s, {requests / took:,.0f} a second |"
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--throughput", type=int, metavar="QUESTIONS")
    chosen = arguments.parse_args()
    print("| of simulated evaluations | share |\n|---|---:|")
    for questions in (100, 400):
        for mean in (0.3, 0.85):
            print(f"| intervals of an accuracy of {mean:.0%} that cover it, {questions} questions | "
                  f"{coverage_of_accuracy(mean, questions):.1%} |")  # fmt: skip
        print(f"| intervals of a difference that cover it, {questions} questions | "
              f"{coverage_of_difference(0.5, questions):.1%} |")  # fmt: skip
        votes, singly = told_apart(questions)
        print(
            f"| equal systems told apart, {questions} questions: by votes, by single answers | "
            f"{votes:.1%}, {singly:.1%} |"
        )
        print(f"| smallest difference at 80 % power found, {questions} questions | {power(questions):.1%} |")
    if chosen.throughput:
        throughput(chosen.throughput)


if __name__ == "__main__":
    main()
