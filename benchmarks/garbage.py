"""Prints time and memory of `malt gc`: `python -m benchmarks.garbage 20000 100000`.

For each number of questions: a version with 39 nodes a question, and an SQLite store with those samples, a judge's,
and four that no version uses; answers of 500 characters.
"""

import hashlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from malt.config.settings import Settings
from malt.datasets.manifest import write_manifest
from malt.datasets.publish.removal import collect_garbage
from malt.datasets.rows.tables import TRAJECTORIES, TRAJECTORIES_FILE
from malt.datasets.version.folders import describe_file
from malt.llm.store.samples import Store
from tests.published import publish_small

NODES, UNUSED = 39, 4
QUESTIONS_AT_ONCE = 1_000
ANSWER = "x" * 500
DAY = 86_400


def key_of(question: int, sample: int) -> str:
    return f"{hashlib.sha256(b'%d' % question).hexdigest()}.{sample}"


def rows(question: int) -> Iterator[tuple[object, ...]]:
    """Yield one question's rows of the store."""
    for sample in range(NODES + UNUSED + 1):
        role = "evaluator" if sample == NODES + UNUSED else "generator"
        yield key_of(question, sample), f"q{question}", role, "m", "", sample, ANSWER, None, None, 1.0, 0.0


def fill(settings: Settings, questions: int) -> None:
    """Make the store and the version."""
    Store(settings.store).close()
    version = publish_small(settings.datasets_dir, "q0")
    path = version.path / TRAJECTORIES_FILE
    with sqlite3.connect(settings.data_dir / "store.db") as database, pq.ParquetWriter(path, TRAJECTORIES) as writer:
        for start in range(0, questions, QUESTIONS_AT_ONCE):
            asked = range(start, min(start + QUESTIONS_AT_ONCE, questions))
            stored = [row for question in asked for row in rows(question)]
            database.executemany(f"INSERT INTO samples VALUES ({','.join('?' * 11)})", stored)
            used = [row for row in stored if isinstance(row[5], int) and row[5] < NODES]
            columns = {"question_id": [row[1] for row in used], "request_key": [row[0] for row in used]}
            empty = pa.nulls(len(used))
            writer.write_table(
                pa.table(
                    [
                        pa.array(columns[f.name], f.type) if f.name in columns else empty.cast(f.type)
                        for f in TRAJECTORIES
                    ],
                    TRAJECTORIES,
                )
            )
    files = {**version.manifest.files, TRAJECTORIES_FILE: describe_file(path, None)}
    write_manifest(version.manifest.model_copy(update={"files": files}), version.path)


def measure(settings: Settings, delete: bool) -> str:
    """Collect garbage in this process; return seconds, rows and peak memory."""
    started = time.perf_counter()
    found = collect_garbage(settings, 30 * DAY, delete=delete)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{found.rows:,} | {time.perf_counter() - started:,.1f} | {peak:,}"


def main() -> None:
    """Print the table."""
    print("| questions | nodes | | rows of no use | seconds | peak MiB |\n|---:|---:|---|---:|---:|---:|")
    for questions in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            fill(Settings(data_dir=Path(folder)), questions)
            for what in ("count", "delete"):
                asked = [sys.executable, "-m", "benchmarks.garbage", what]
                done = subprocess.run(
                    asked, env={**os.environ, "MALT_DATA_DIR": folder}, check=True, stdout=subprocess.PIPE, text=True
                )
                print(f"| {questions:,} | {questions * NODES:,} | {what} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] in (["count"], ["delete"]):
        print(measure(Settings(), sys.argv[1] == "delete"))
    else:
        main()
