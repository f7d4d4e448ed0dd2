"""Prints how `malt run` ends for every kind of bad reply: `python -m benchmarks.faults.replies [--quick] [--postgres]`.

Each case of tests/cases/bad_replies.jsonl is the generator's provider's reply to one question, about 24 cases a
run. Cases that end a run get separate runs, all at once: an endpoint that only sends 429s is given up after 15 minutes;
`--quick` skips these. With `--postgres` the answers are kept in PostgreSQL. Then the faults are removed, and the
same run requests what is missing. The script fails if a run has unexpected output, an exit code that is not allowed
for its cases, or requests again what was answered.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.faults.stage import MALT, PROJECT
from malt.hosting.private_prefect import PrefectServer, direct_to_loopback
from tests.configs import REQUESTS, model
from tests.llm.provider.test_bad_replies import CASES, Case, fault_of
from tests.mishaps import Asked, Fault
from tests.postgres import Postgres
from tests.providers import ScriptedProvider

TOGETHER = 24
ENDS_A_RUN = {"waits": {3}, "stops": {3}, "config": {2}}
"""Allowed exit codes of cases that end a run, by the case's `ends`; all other cases allow 0 and 1."""
_NUMBER = re.compile(r"Case (\d+):")


class Sick(NamedTuple):
    """A provider's faults, by the number of the case that a prompt names."""

    cases: Mapping[int, Case]
    healed: set[int]
    asked: Counter[int]
    """Number of requests to the generator, by case."""

    def fault(self, asked: Asked) -> Fault | None:
        """Return the generator's fault for the case in the prompt; other roles are answered."""
        found = _NUMBER.search(asked.prompt)
        if asked.model != "generator" or found is None:
            return None
        number = int(found[1])
        self.asked[number] += 1
        return None if number in self.healed else fault_of(self.cases[number])


class Round(NamedTuple):
    """Cases of one run, with its folder."""

    numbers: Sequence[int]
    folder: Path
    environment: Mapping[str, str]

    def start(self, provider: ScriptedProvider, timeout_s: float) -> "subprocess.Popen[str]":
        """Start the run, or start it again."""
        roles = "".join(
            f"[roles.{role}]\n{model(role, provider)}samples = 1\ntimeout_s = {timeout_s}\n" for role in REQUESTS
        )
        config = f'name = "{self.folder.name}"\n[questions]\nsource = "q.jsonl"\n{roles}[evaluator]\nkind = "number"\n'
        self.folder.mkdir(exist_ok=True)
        (self.folder / "run.toml").write_text(f'{config}[run]\ntracking = "shard"\n')
        rows = [f'{{"question": "Case {number}: what is 2 + 3?", "answer": "5"}}\n' for number in self.numbers]
        (self.folder / "q.jsonl").write_text("".join(rows))
        environment = {**self.environment, "MALT_DATA_DIR": str(self.folder / "data"), "TEST_KEY": "test-key-4711"}
        command = [MALT, "run", str(self.folder / "run.toml"), "--json"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=PROJECT, env=environment)


def faults_of(process: "subprocess.Popen[str]", allowed: set[int]) -> list[str]:
    """Wait for a run's end; return its problems."""
    out, err = process.communicate()
    said = out + err
    unforeseen = [word for word in ("Traceback (most recent", "not expected", "test-key-4711") if word in said]
    wrong = [] if process.returncode in allowed else [f"exit code {process.returncode}"]
    return [f"{each}: {err.strip()[-600:]}" for each in (*unforeseen, *wrong)]


def play(
    rounds: Sequence[Round], provider: ScriptedProvider, sick: Sick, allowed: set[int]
) -> tuple[Counter[int], list[str]]:
    """Run rounds concurrently, remove the faults, run them again; return exit codes and problems."""
    timeout_s = 2 if any("action" in sick.cases[number] for each in rounds for number in each.numbers) else 30
    processes = [each.start(provider, timeout_s) for each in rounds]
    wrong = [problem for process in processes for problem in faults_of(process, allowed)]
    codes = Counter(process.returncode for process in processes)
    for each in rounds:
        unasked = [number for number in each.numbers if not sick.asked[number]]
        wrong += [f"never asked: {sick.cases[number]['name']}" for number in unasked]
    before = Counter(sick.asked)
    sick.healed.update(number for each in rounds for number in each.numbers)
    for each in rounds:
        wrong += [f"once mended, {problem}" for problem in faults_of(each.start(provider, timeout_s), {0, 1})]
    again = {number for number in sick.asked - before if sick.cases[number]["ends"] == "answered"}
    return codes, wrong + [f"asked again: {sick.cases[number]['name']}" for number in sorted(again)]


def list_kinds(*, apart: bool) -> Iterator[tuple[str, set[int], list[list[int]]]]:
    """Yield for each kind of case its name, its allowed exit codes, and the cases of each run."""
    numbers = list(range(len(CASES)))
    Random(4711).shuffle(numbers)  # too many failures in a row count as an outage
    mixed = [number for number in numbers if CASES[number]["ends"] not in ENDS_A_RUN]
    of_replies, of_connections = (
        [each for each in mixed if ("action" in CASES[each]) is acts] for acts in (False, True)
    )
    chunks = [of_replies[start : start + TOGETHER] for start in range(0, len(of_replies), TOGETHER)]
    yield "an answer, or a branch that fails", {0, 1}, chunks
    yield "a connection that breaks or hangs", {0, 1, 3}, [of_connections]
    for end, codes in ENDS_A_RUN.items() if apart else ():
        yield end, codes, [[number] for number in numbers if CASES[number]["ends"] == end]


def main(*, apart: bool, postgres: bool) -> None:
    """Print the table."""
    print(
        "| what the cases end as | cases | runs | exit codes | wrong | s |\n|---|---:|---:|---|---:|---:|", flush=True
    )
    os.environ.update(direct_to_loopback())
    sick, problems = Sick(dict(enumerate(CASES)), set(), Counter()), []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="malt-replies-"))
        provider = stack.enter_context(ScriptedProvider(faults=sick.fault))
        store = {"MALT_STORE_URL": stack.enter_context(Postgres()).url("postgres")} if postgres else {}
        server = PrefectServer(Path(folder) / "prefect")
        server.wait_until_ready()
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MALT"))}
        environment = {**outside, **server.client_settings, **store}
        for kind, allowed, runs in list_kinds(apart=apart):
            started, at_once = time.monotonic(), len(runs) if kind in ENDS_A_RUN else 1
            rounds = [
                Round(numbers, Path(folder) / f"{kind.split()[0]}{place}", environment)
                for place, numbers in enumerate(runs)
            ]
            codes, wrong = Counter[int](), list[str]()
            for start in range(0, len(rounds), at_once):
                some = play(rounds[start : start + at_once], provider, sick, allowed)
                codes, wrong = codes + some[0], wrong + some[1]
            ends = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
            cases, took = sum(map(len, runs)), time.monotonic() - started
            print(f"| {kind} | {cases} | {len(runs)} | {ends} | {len(wrong)} | {took:.0f} |", flush=True)
            problems += wrong
        server.stop()
    print(*problems, sep="\n", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="leave out what ends a run, and may take 15 minutes")
    parser.add_argument("--postgres", action="store_true", help="keep the answers in PostgreSQL")
    chosen = parser.parse_args()
    main(apart=not chosen.quick, postgres=chosen.postgres)
