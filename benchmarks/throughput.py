"""Prints the overhead of growing trees beside the model's own time: `python -m benchmarks.throughput --help`.

Every contestant grows the same trees (n = 3: 39 completions a question in 13 requests) against the same loopback
provider, each in a separate process, in alternation, in several rounds. Rates are measured by the provider, from its
first request to its last answer. CPU is that of the contestant and its children after the first request, divided by
the completions: with grading and publishing, without start-up. All roles are one model, so that our limit, which is
per model, holds for the whole tree like the bare loop's; the provider's largest number in flight is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

ROLES = ("generator", "verifier", "refiner")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MALT = [str(Path(sys.executable).parent / "malt"), "run"]
PROJECT = Path(__file__).parents[1]
RIVALS = ("distilabel", "curator", "data_designer")
"""Other libraries; each needs a separate environment, since their dependencies conflict with each other's and ours."""
NO_RIVALS: Mapping[str, str] = MappingProxyType({})


class Figures(NamedTuple):
    """Measurements of one contestant in one round."""

    completions: int
    per_second: float
    cpu_ms: float
    startup_cpu_s: float
    grown_mb: float
    """Memory at the last answer, in MB."""
    peak_mb: float
    first_request_s: float
    wall_s: float
    most_in_flight: int


class Watched(NamedTuple):
    """A finished process, with the CPU and memory of it and its children over time."""

    started: float
    ended: float
    cpu: list[tuple[float, float]]
    """Samples of the monotonic time and the CPU seconds so far."""
    memory: list[tuple[float, float]]
    """Samples of the monotonic time and the total resident memory in MB; shared pages count for each process."""


@contextmanager
def provider(latency_s: float) -> Iterator[str]:
    """Run the loopback provider; yield its base URL."""
    command = [sys.executable, "-m", "benchmarks.loopback", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def stats(url: str) -> dict[str, float]:
    """Return the provider's statistics since the last call."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        told: dict[str, float] = json.load(reply)
    return told


def write_config(folder: Path, url: str, questions: int, in_flight: int) -> Path:
    """Write the questions and a config that asks the provider about them."""
    rows = [{"question": f"Question {number}: how much is it?", "answer": "42"} for number in range(questions)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    roles = [f'[roles.{role}]\nmodel = "openai/m"\napi_base = "{url}"' for role in ROLES]
    source = '[questions]\nsource = "questions.jsonl"\nformat = "plain"\nground_truth = "answer"'
    rest = f'[evaluator]\nkind = "number"\n\n[limits]\nmax_in_flight = {in_flight}'
    config = folder / "throughput.toml"
    config.write_text("\n\n".join(['name = "throughput"\nprompts = "math"', source, *roles, rest]) + "\n")
    return config


def pythons(environments: Path | None) -> dict[str, str]:
    """Return the Python of each other library that has an environment in a folder."""
    found = {name: environments / name / "bin" / "python" for name in RIVALS} if environments else {}
    return {name: str(python) for name, python in found.items() if python.exists()}


def command_of(
    contestant: str, folder: Path, url: str, config: Path, in_flight: int, rivals: Mapping[str, str] = NO_RIVALS
) -> list[str]:
    """Return the command that starts a contestant."""
    files = [str(folder / "questions.jsonl"), str(in_flight), str(folder / "leaves.jsonl")]
    if contestant == "bare":
        return [sys.executable, "-m", "benchmarks.bare_loop", url, *files]
    if contestant in rivals:
        script = PROJECT / "benchmarks" / "rivals" / f"with_{contestant}.py"
        return [rivals[contestant], str(script), url, *files, str(PROJECT / "prompts" / "math")]
    runner = "processes" if contestant == "processes" else "threads"
    tracking = "branch" if contestant == "branch" else "shard"
    return [*MALT, str(config), "-s", f"run.tracking={tracking}", "-s", f"run.task_runner={runner}"]


def measure(
    contestant: str, questions: int, url: str, in_flight: int, rivals: Mapping[str, str] = NO_RIVALS
) -> Figures:
    """Run one contestant in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder, url, questions, in_flight)
        stats(url)
        watched = watch(command_of(contestant, folder, url, config, in_flight, rivals), folder)
    return figures_of(watched, stats(url))


def figures_of(watched: Watched, served: dict[str, float]) -> Figures:
    """Combine the measurements of a process with the provider's statistics."""
    before = max((used for at, used in watched.cpu if at <= served["first_at"]), default=0.0)
    completions = int(served["completions"])
    return Figures(
        completions=completions,
        per_second=completions / (served["last_at"] - served["first_at"]),
        cpu_ms=(watched.cpu[-1][1] - before) / completions * 1000,
        startup_cpu_s=before,
        grown_mb=next(mb for at, mb in reversed(watched.memory) if at <= served["last_at"]),
        peak_mb=max(mb for _, mb in watched.memory),
        first_request_s=served["first_at"] - watched.started,
        wall_s=watched.ended - watched.started,
        most_in_flight=int(served["most_in_flight"]),
    )


def watch(command: Sequence[str], folder: Path) -> Watched:
    """Run a command to its end; sample its processes ten times a second."""
    started, cpu, memory = time.monotonic(), [(0.0, 0.0)], [(0.0, 0.0)]
    log = folder / "output.txt"
    environment = {**os.environ, "MALT_DATA_DIR": str(folder / "data"), "OPENAI_API_KEY": "none"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            family, now = descendants(process.pid), time.monotonic()
            cpu.append((now, cpu_of(process.pid, family)))
            memory.append((now, sum(map(memory_mb, family))))
            time.sleep(0.1)
    ended = time.monotonic()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return Watched(started, ended, [*cpu, (ended, used.ru_utime + used.ru_stime)], memory)


def descendants(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [task.name for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
        for thread in threads:
            children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in descendants(int(child)))]


def cpu_of(parent: int, family: Sequence[int]) -> float:
    """Return the CPU seconds of processes: of running ones, and of ended ones that were waited for."""
    total = 0.0
    for pid in family:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15] if pid == parent else fields[11:13])) * TICK_S
    return total


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def main() -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contestants", nargs="*", default=["bare", "shard", "branch", "processes"])
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", type=Path, help=f"folder of environments named {', '.join(RIVALS)}")
    asked = parser.parse_args()
    rivals = pythons(asked.rivals)
    rounds: dict[str, list[Figures]] = {name: [] for name in [*asked.contestants, *rivals]}
    with provider(asked.latency_ms / 1000) as url:
        for _ in range(asked.rounds):
            for name, figures in rounds.items():
                figures.append(measure(name, asked.questions, url, asked.in_flight, rivals))
                print(f"{name}: {figures[-1]}", file=sys.stderr, flush=True)
    print_table(rounds, f"{asked.latency_ms:g} ms, {asked.in_flight} in flight, {asked.questions} questions")


def print_table(rounds: dict[str, list[Figures]], title: str) -> None:
    """Print medians."""
    print(f"\n{title}; {os.cpu_count()} processors; medians of the rounds\n")
    heads = "completions/s | CPU ms a completion | start-up CPU s | peak MB | first request s | whole s | most at once"
    print(f"| | {heads} |\n|---|" + "---:|" * 7)
    for name, figures in rounds.items():
        _, rate, cpu, startup, _, peak, first, whole, most = map(median, zip(*figures, strict=True))
        times = f"{peak:,.0f} | {first:.1f} | {whole:.1f} | {most:.0f}"
        print(f"| {name} | {rate:,.0f} | {cpu:.2f} | {startup:.1f} | {times} |")


if __name__ == "__main__":
    main()
