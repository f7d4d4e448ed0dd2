"""Prints time and memory of `malt export`: `python -m benchmarks.export --questions 20000 100000`.

A version of that size is a small one with repeated rows, which makes no difference to an export. Texts have about
400 characters, prompts contain an example. Memory is the peak of the command's process.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow.parquet as pq

from malt.datasets.export.formats import FORMATS
from malt.datasets.rows.tables import SCHEMAS
from malt.llm.request import Message
from malt.trees.credit import ValuedTree
from tests.published import PROVENANCE, mixed_tree, publish, spec_of

SMALL = 500
"""Number of questions in the version whose rows are repeated."""
PROSE = "So she has 5 + 7 = 12 eggs left, and sells them for $2 each.\n" * 6
EXAMPLE = (Message("user", PROSE), Message("assistant", PROSE))
PROGRAM = """
from pathlib import Path
from malt.cli.main import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("VmHWM")))
"""


class Took(NamedTuple):
    """Time, memory and size of one export."""

    seconds: float
    peak_bytes: int
    rows: int
    size: int


def tree_of_texts(question_id: str) -> ValuedTree:
    """Return a tree with texts of usual length, all different."""
    tree = mixed_tree(question_id)
    nodes = {
        address: replace(
            node,
            prompt=(node.prompt[0], *EXAMPLE, node.prompt[1]),
            completion=replace(node.completion, text=f"{PROSE}{node.text}"),
        )
        for address, node in tree.tree.nodes.items()
    }
    return replace(tree, tree=replace(tree.tree, nodes=nodes))


def repeat(file: Path, target: Path, times: int) -> None:
    """Write a file's row groups so many times to another file."""
    table = pq.read_table(file)
    with pq.ParquetWriter(target, table.schema, compression="zstd") as writer:
        for _ in range(times):
            writer.write_table(table)


def make_version(small: Path, folder: Path, questions: int) -> Path:
    """Make a version of so many questions; return its folder."""
    large = folder / f"of-{questions}"
    for file in SCHEMAS:
        (large / file).parent.mkdir(parents=True, exist_ok=True)
        repeat(small / file, large / file, questions // SMALL)
    (large / "manifest.json").write_bytes((small / "manifest.json").read_bytes())
    return large


def run_export(version: Path, form: str, target: Path) -> Took:
    """Export in a separate process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, "export", str(version), "--to", form, str(target)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    seconds = time.perf_counter() - started
    rows = sum(int(line.split()[-2].replace(",", "")) for line in printed if line.endswith(" rows"))
    peak_kib = int(printed[-1].split()[1])
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Took(seconds, peak_kib * 1024, rows, size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--to", nargs="+", default=["trl", "openai-sft", "alpaca", "axolotl", "prm"], choices=FORMATS)
    arguments = parser.parse_args()
    print(f"processors: {os.cpu_count()}\n\n| questions | format | rows | GB | s | rows a second | peak MB |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    with TemporaryDirectory() as name:
        folder = Path(name)
        trees = (tree_of_texts(f"question {number}") for number in range(SMALL))
        spec = spec_of(generator_dpo=True, duplicate_questions="keep")
        small = publish(trees, spec, PROVENANCE, folder / "datasets").path
        for questions in arguments.questions:
            version = make_version(small, folder, questions)
            for form in arguments.to:
                with TemporaryDirectory(dir=folder) as place:
                    took = run_export(version, form, Path(place) / "out")
                print(
                    f"| {questions:,} | `{form}` | {took.rows:,} | {took.size / 1e9:.2f} | {took.seconds:.1f} "
                    f"| {took.rows / took.seconds:,.0f} | {took.peak_bytes / 1e6:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
