"""Prints the cost of runs by size, and of repeating them: `python -m benchmarks.scale 1000 10000`.

Each size is run against the loopback provider in an empty folder, then once more: the second run may send no request.
Memory is the total resident memory of the run's processes (the run, its pool, its Prefect server; shared pages
count for each): at the last answer, and at its peak, while the dataset is written. CPU is their total,
divided by the completions, without start-up.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.throughput import command_of, figures_of, provider, stats, watch, write_config

LATENCY_S = 0.05
IN_FLIGHT = 128


def measure(questions: int, url: str) -> str:
    """Run one size twice; return a row of the table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = command_of("shard", folder, url, write_config(folder, url, questions, IN_FLIGHT), IN_FLIGHT)
        stats(url)
        figures = figures_of(watch(command, folder), stats(url))
        again = watch(command, folder)
        asked = int(stats(url)["requests"])
    rerun = f"{again.ended - again.started:.1f} | {again.cpu[-1][1]:.1f} | {asked}"
    return (
        f"| {questions:,} | {figures.per_second:,.0f} | {figures.cpu_ms:.2f} | {figures.grown_mb:,.0f} | "
        f"{figures.peak_mb:,.0f} | {figures.first_request_s:.1f} | {figures.wall_s:.0f} | {rerun} |"
    )


def main() -> None:
    """Print the table."""
    print(
        "| questions | completions/s | CPU ms a completion | grown MB | most MB | first request s "
        "| whole s | again s | again CPU s | asked |"
    )
    print("|" + "---:|" * 10)
    with provider(LATENCY_S) as url:
        for questions in map(int, sys.argv[1:]):
            print(measure(questions, url), flush=True)


if __name__ == "__main__":
    main()
