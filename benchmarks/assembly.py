"""Prints time, CPU, memory and size of `malt assemble`: `python -m benchmarks.assembly --questions 20000 100000`.

The answers in the store are synthetic: as long as real ones, under the keys of a real run, some right, some
wrong, a few cut off. Time and memory are those of all processes that the command starts, Prefect's server among them.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

import psutil
from pydantic import JsonValue

from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.spec import RunSpec
from malt.engine.job import read_job
from malt.llm.client.completers import read_sample
from malt.llm.client.session import fill_rows, make_blank_rows
from malt.llm.provider.call import Reply
from malt.llm.request import Completion, CompletionRequest
from malt.llm.store.database import StoredSample
from malt.llm.store.samples import COLUMNS, Store
from malt.prompts import PromptSet
from malt.questions.question import Question
from malt.trees.growth import TreeInputs, grow
from malt.trees.replay import windows

CONFIG = """
name = "made-up"
prompts = "math"
questions.source = "questions-{count}.jsonl"
evaluator.kind = "number"
roles.generator.model = "openai/made-up"
roles.verifier.model = "openai/made-up"
roles.refiner.model = "openai/made-up"
"""
LENGTHS = {Role.GENERATOR: 400, Role.VERIFIER: 200, Role.REFINER: 400}
"""Average length of a text in characters."""
CUT_OFF = 0.02
"""Share of texts that are truncated at max_tokens."""
WORDS = [
    *("so", "she", "has", "5", "more", "than", "the", "12", "eggs", "that", "were", "left\n", "after"),
    *("we", "take", "7", "away", "=", "which", "is", "15", "*", "4", "of", "them", "then"),
]
PROSE = " ".join(random.Random(0).choices(WORDS, k=500_000))

BULK = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -1000000;
"""
"""Fast but unsafe settings, for a file that is deleted and written again if writing it is interrupted."""
SAMPLING_S = 0.5


class Made(NamedTuple):
    """Time, CPU, memory and size of one `malt assemble`."""

    nodes: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    version_bytes: int


class MadeUp:
    """A `Complete` that invents one question's answers in an endpoint's format, and collects their store rows."""

    def __init__(self, question: Question) -> None:
        self.rows: list[StoredSample] = []
        self._answer = question.ground_truth
        self._random = random.Random(question.question_id)
        self._skill = self._random.random()

    async def __call__(self, request: CompletionRequest) -> Sequence[Completion]:
        choices: list[JsonValue] = [self._choice(request.role, index) for index in range(request.count)]
        rows = fill_rows(make_blank_rows(request, range(request.count)), Reply(response_body(choices), 1.5, 0.0004))
        self.rows += rows
        return [read_sample(row, cached=False) for row in rows]

    def _choice(self, role: Role, index: int) -> JsonValue:
        length = self._random.randrange(LENGTHS[role] // 2, LENGTHS[role] * 3 // 2)
        start = self._random.randrange(len(PROSE) - length)
        right, cut_off = self._random.random() < self._skill, self._random.random() < CUT_OFF
        if role is Role.VERIFIER:
            closing = f"Verdict: {'correct' if right else 'wrong'}"
        else:
            closing = f"Final Answer: {self._answer if right else self._random.randrange(100)}"
        text = PROSE[start : start + length] if cut_off else f"{PROSE[start : start + length]}\n{closing}"
        return {
            "finish_reason": "length" if cut_off else "stop",
            "index": index,
            "message": {
                "content": text,
                "role": "assistant",
                "tool_calls": None,
                "function_call": None,
                "provider_specific_fields": {"refusal": None},
                "annotations": [],
            },
            "provider_specific_fields": {},
        }


def response_body(choices: list[JsonValue]) -> dict[str, JsonValue]:
    """Return a response in the format of LiteLLM for OpenAI."""
    details: dict[str, JsonValue] = {"accepted_prediction_tokens": 0, "audio_tokens": 0, "reasoning_tokens": 0}
    return {
        "id": "chatcmpl-CfVXmVQ9hBcT0bkYw9N2tqM1dWvYp",
        "created": 1_760_000_000,
        "model": "made-up-2026-10-01",
        "object": "chat.completion",
        "system_fingerprint": "fp_560af6e559",
        "choices": choices,
        "usage": {
            "completion_tokens": 120 * len(choices),
            "prompt_tokens": 250,
            "total_tokens": 250 + 120 * len(choices),
            "completion_tokens_details": details,
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        },
        "service_tier": "default",
    }


def write_questions(folder: Path, count: int) -> Path:
    """Write a config and its questions; a longer question file starts with the rows of a shorter one."""
    chosen = random.Random(1)
    with (folder / f"questions-{count}.jsonl").open("w") as file:
        for number in range(count):
            start = chosen.randrange(len(PROSE) - 200)
            row = {"question": f"{number}. {PROSE[start : start + 200]}?", "answer": str(chosen.randrange(100))}
            file.write(json.dumps(row) + "\n")
    config = folder / f"made-up-{count}.toml"
    config.write_text(CONFIG.format(count=count))
    return config


def write_store(path: Path, spec: RunSpec) -> None:
    """Write the rows of a run; siblings' rows are shuffled apart, as if many requests had been in flight."""
    job = read_job(spec)
    Store(f"sqlite:///{path}").close()
    insert = f"INSERT INTO samples ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    work = partial(made_up_rows, spec=spec, prompts=job.prompts)
    with closing(sqlite3.connect(path)) as store, multiprocessing.get_context("spawn").Pool() as pool:
        store.executescript(BULK)
        for rows in pool.imap(work, windows(job.questions)):
            store.executemany(insert, rows)
        store.commit()


def made_up_rows(questions: Sequence[Question], spec: RunSpec, prompts: PromptSet) -> list[tuple[object, ...]]:
    """Grow some questions' trees; return their rows for the store."""
    made_up = [MadeUp(question) for question in questions]

    async def grow_all() -> None:
        for question, complete in zip(questions, made_up, strict=True):
            await grow(question, TreeInputs(spec, prompts, complete))

    asyncio.run(grow_all())
    rows = [tuple(getattr(row, name) for name in COLUMNS) for complete in made_up for row in complete.rows]
    random.Random(questions[0].question_id).shuffle(rows)
    return rows


def assemble(config: Path) -> Made:
    """Run the command and measure it."""
    environment = {**os.environ, "MALT_DATA_DIR": str(config.parent)}
    command = [sys.executable, "-c", "from malt.cli.main import main; main()", "assemble", "--json", str(config)]
    started, before = time.perf_counter(), os.times()
    with TemporaryFile() as output, subprocess.Popen(command, env=environment, stdout=output) as process:
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, resident_bytes(process.pid))
            time.sleep(SAMPLING_S)
        output.seek(0)
        summary = json.load(output)
    seconds, after = time.perf_counter() - started, os.times()
    if process.returncode:
        raise SystemExit("some trees are not in the store: it was made by another benchmark; remove it")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    sizes = [path.stat().st_size for path in Path(summary["path"]).rglob("*") if path.is_file()]
    return Made(summary["cached_completions"], seconds, cpu_s, peak_bytes, sum(sizes))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total


def benchmark(folder: Path, counts: Sequence[int]) -> None:
    """Print the table."""
    configs = {count: write_questions(folder, count) for count in counts}
    store, most = folder / "store.db", max(counts)
    if not store.exists():
        started = time.perf_counter()
        write_store(store, load_spec(configs[most]))
        size = store.stat().st_size / 2**20
        print(f"store of {most:,} questions: {size:,.0f} MiB, written in {time.perf_counter() - started:.0f} s\n")
    print(f"processors: {os.cpu_count()}\n")
    print("| questions | nodes | seconds | nodes/s | CPU s | peak MiB | version MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for count, config in configs.items():
        nodes, seconds, cpu_s, peak, size = assemble(config)
        rate = f"{nodes:,} | {seconds:,.1f} | {nodes / seconds:,.0f} | {cpu_s:,.1f}"
        print(f"| {count:,} | {rate} | {peak / 2**20:,.0f} | {size / 2**20:,.0f} |", flush=True)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[200, 1000], help="a row of the table each")
    parser.add_argument("--folder", type=Path, help="where store and versions are kept; a store in it is used again")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        benchmark(folder.resolve(), sorted(arguments.questions))


if __name__ == "__main__":
    main()
