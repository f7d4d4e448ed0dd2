"""Prints the overhead of `malt serve` over the calls that it makes: `python -m benchmarks.serving`.

A server answers new questions with a loopback provider that takes 20 ms. One call to the server alternates with the
three calls of its roles directly to the provider, over a connection that stays open; medians.

`--inspect PYTHON` names the Python of an environment with `inspect_ai` and `openai`: the stored answers of an
evaluation on a scripted provider are then scored by inspect_ai too, through `malt serve`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.throughput import MALT, PROJECT, ROLES, provider, write_config
from malt.evaluation.evaluate import evaluate
from tests.evaluation.planted import planted_spec, script
from tests.providers import ScriptedProvider

LATENCY_S = 0.020
SCORED = 64


@contextmanager
def malt_serve(config: Path, port: int) -> Iterator[dict[str, str]]:
    """Run `malt serve`; once it answers, yield the variables that point other evaluators at it."""
    command = [MALT[0], "serve", str(config), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base, name, key = (process.stdout.readline().split()[-1] for _ in range(3))
            wait_until_up(f"{base}/models", key)
            yield {"MALT_BASE_URL": base, "MALT_API_KEY": key, "MODEL": f"openai-api/{name}"}
        finally:
            process.terminate()


def wait_until_up(address: str, key: str) -> None:
    for _ in range(600):
        try:
            httpx.get(address, headers={"Authorization": f"Bearer {key}"}).raise_for_status()
        except httpx.ConnectError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("malt serve did not come up within a minute")


def seconds_of(client: httpx.Client, address: str, text: str) -> float:
    """Send one request; return its duration."""
    started = time.perf_counter()
    turns = [{"role": "user", "content": text}]
    client.post(f"{address}/chat/completions", json={"model": "m", "messages": turns}).raise_for_status()
    return time.perf_counter() - started


def overhead(calls: int) -> None:
    """Measure the served trio against its three single calls."""
    os.environ["OPENAI_API_KEY"] = "none"
    with tempfile.TemporaryDirectory() as name, provider(LATENCY_S) as url:
        os.environ["MALT_DATA_DIR"] = str(Path(name) / "data")
        config = write_config(Path(name), url, questions=1, in_flight=8)
        with malt_serve(config, 8471) as served, httpx.Client() as direct, httpx.Client() as client:
            client.headers["Authorization"] = f"Bearer {served['MALT_API_KEY']}"
            seconds_of(client, served["MALT_BASE_URL"], "The first call imports LiteLLM.")
            whole, parts = [], []
            for number in range(calls):
                whole.append(seconds_of(client, served["MALT_BASE_URL"], f"New question {number}?"))
                parts.append(sum(seconds_of(direct, url, f"New question {number}, {role}?") for role in ROLES))
    added = sorted(1000 * (one - three) for one, three in zip(whole, parts, strict=True))
    both = f"{1000 * median(whole):.1f} ms, {1000 * median(parts):.1f} ms"
    print(f"| a call to `malt serve`, and its three parts ({calls} each) | {both} |")
    tenth, last = added[calls // 10], added[calls * 9 // 10]
    print(f"| what `malt serve` adds: one in ten, median, nine in ten | "
          f"{tenth:.1f} ms, {median(added):.1f} ms, {last:.1f} ms |")  # fmt: skip


def score_elsewhere(python: str) -> None:
    """Evaluate on the scripted provider, and have inspect_ai score the same answers."""
    os.environ["TEST_KEY"] = "k"
    with tempfile.TemporaryDirectory() as name, ScriptedProvider(script=script) as scripted:
        os.environ["MALT_DATA_DIR"] = str(Path(name) / "data")
        spec = planted_spec(Path(name), scripted, "chains = 1", SCORED)
        cell, asked = evaluate(spec).summary.systems["pipeline"].ma, scripted.request_count
        with malt_serve(Path(name) / "planted.toml", 8472) as served:
            files = PROJECT / "benchmarks/rivals/with_inspect.py", Path(name) / "heldout.jsonl"
            told = subprocess.check_output(
                [python, *map(str, files)], env={**os.environ, **served}, cwd=name, text=True
            )
        found = json.loads(told.splitlines()[-1])
    both = f"{cell.accuracy:.4f}, {found['accuracy']:.4f}; {found['questions']} scored"
    print(f"| stored answers by `malt evaluate`, and by inspect_ai {found['version']} through `malt serve` | {both} |")
    print(f"| requests to the provider meanwhile | {scripted.request_count - asked} |")
    if (found["accuracy"], found["questions"], scripted.request_count) != (cell.accuracy, cell.questions, asked):
        sys.exit("they differ")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--calls", type=int, default=200)
    arguments.add_argument("--inspect", metavar="PYTHON")
    chosen = arguments.parse_args()
    if chosen.inspect:
        score_elsewhere(chosen.inspect)
    if chosen.calls:
        overhead(chosen.calls)


if __name__ == "__main__":
    main()
