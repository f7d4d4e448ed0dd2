"""Prints how often an evaluation's statistics are right on simulated evaluations, or its throughput.

`python -m benchmarks.evaluation`: coverage of 95 % intervals, systems wrongly told apart (10,000 simulated evaluations
each), power at the planned difference (1,000 each). `--throughput QUESTIONS` prints instead how an evaluation of so
many questions x 4 systems x 3 chains compares with a run: requests a second and CPU a request, on the same loopback
provider (50 ms, 128 in flight).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.throughput import MALT, command_of, figures_of, provider, stats, watch, write_config
from malt.evaluation.statistics import bootstrap, estimate, paired_test, smallest_difference
from tests.evaluation import simulated

SIMULATED, TESTED = 1_000, 10_000
IN_FLIGHT = 128
EVALUATE = """
[evaluate]
questions = { source = "questions.jsonl", format = "plain", ground_truth = "answer" }
overlap = "keep"
""" + "".join(f"[evaluate.systems.s{number}]\nrefiner = {{ seed = {number} }}\n" for number in range(1, 5))
"""Four systems of one model, so that they share one limit, as the roles of the run do."""


def coverage_of_accuracy(mean: float, questions: int) -> float:
    """Return the share of intervals that contain the true accuracy."""
    found = (estimate(first) for first, _ in simulated.evaluations(SIMULATED, mean, 0.0, questions))
    return float(np.mean([(each.low or 0.0) <= mean <= (each.high or 0.0) for each in found]))


def coverage_of_difference(mean: float, questions: int) -> float:
    """Return the share of intervals that contain the true difference."""
    truth = simulated.true_gain(mean, 0.4)
    pairs = simulated.evaluations(SIMULATED, mean, 0.4, questions)
    intervals = (bootstrap(second - first) for first, second in pairs)
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


def told_apart(questions: int) -> tuple[float, float]:
    """Return the shares of equal systems told apart by the test of votes, and by the one of single answers."""
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
    """Run, evaluate, and evaluate again from the store."""
    print("| | requests | a second | CPU ms a request | whole s |\n|---|---:|---:|---:|---:|")
    with provider(0.05) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder, url, questions, IN_FLIGHT)
        measure("run", command_of("shard", folder, url, config, IN_FLIGHT), folder, url)
        config.write_text(config.read_text() + EVALUATE)
        for what in ("evaluate", "evaluate, from the store"):
            measure(what, [MALT[0], "evaluate", str(config)], folder, url)


def measure(what: str, command: list[str], folder: Path, url: str) -> None:
    """Run a command; print its requests as the provider counted them, and its CPU."""
    stats(url)
    watched, served = watch(command, folder), stats(url)
    whole, requests = watched.ended - watched.started, int(served["requests"])
    if not requests:
        print(f"| {what} | 0 | | | {whole:.1f} |")
        return
    figures = figures_of(watched, served)
    a_request = figures.completions / requests
    rate, cpu_ms = figures.per_second / a_request, figures.cpu_ms * a_request
    print(f"| {what} | {requests:,} | {rate:,.0f} | {cpu_ms:.2f} | {whole:.1f} |")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--throughput", type=int, metavar="QUESTIONS")
    chosen = arguments.parse_args()
    if chosen.throughput:
        throughput(chosen.throughput)
        return
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


if __name__ == "__main__":
    main()
