"""Prints the embedded model's speed: one server with all threads, as before, against lanes of one thread each.

`nice python -m benchmarks.embedded [QUESTIONS]`. Both answer the same requests in the same process, in turn: a
question's three siblings (growth) and single samples (evaluation's later roles), with the prompts of `math`, T = 0.7
and 40 tokens. Weights: the packaged Q4_1, and the same as F16, the format of trained roles. The CPU seconds are the
process's own: unlike the wall clock, they hardly depend on other programs.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from malt.canonical_json import cached_sha256
from malt.config.roles import Role, RoleSpec
from malt.llm.provider import call, embedded
from malt.llm.request import CompletionRequest
from malt.llm.response import as_list
from malt.models import gguf
from malt.prompts import load_prompts

ROUNDS = 2


class Took(NamedTuple):
    """Time and CPU of answering."""

    tokens: int
    cpu_s: float
    wall_s: float


def requests(model: str, questions: int) -> list[CompletionRequest]:
    """Return the generator's requests for word problems that are all different."""
    played = RoleSpec.model_validate({"model": model, "temperature": 0.7, "max_tokens": 40, "seed": 1})
    prompts = load_prompts("math")
    texts = [f"A shop has {3 * n + 17} pens and sells {n + 5}. How many are left?" for n in range(questions)]
    return [
        CompletionRequest(Role.GENERATOR, played, prompts.messages(Role.GENERATOR, question=text), f"q{n}")
        for n, text in enumerate(texts)
    ]


def serve_as_before(path: Path) -> embedded.Lane:
    """Start one server with llama.cpp's own defaults: a thread for each core, batches of 512, flash attention."""
    xllamacpp = embedded._import_xllamacpp()
    values: Any = embedded._set_parameters(xllamacpp.CommonParams(), path)
    usual = xllamacpp.CommonParams()
    values.n_parallel, values.n_ctx = 8, 8 * embedded.CONTEXT
    values.n_batch, values.n_ubatch, values.flash_attn_type = usual.n_batch, usual.n_ubatch, usual.flash_attn_type
    values.cpuparams.n_threads = values.cpuparams_batch.n_threads = os.cpu_count() or 1
    return embedded.Lane(xllamacpp.Server(values))


async def answer(asked: Sequence[CompletionRequest], samples: int) -> Took:
    """Answer all requests, with one in flight for each lane."""
    cpu, wall = time.process_time(), time.monotonic()
    replies = await asyncio.gather(*(call.send(each, 0, samples) for each in asked))
    took = time.process_time() - cpu, time.monotonic() - wall
    await call.close()
    choices: list[Any] = [choice for each in replies for choice in as_list(each.response["choices"])]
    return Took(sum(choice["completion_tokens"] for choice in choices), *took)


def compare(name: str, path: Path, questions: int) -> None:
    """Print both ways side by side."""
    model = f"{embedded.NAME}/{path}"
    ways = {"before": embedded._Served([serve_as_before(path)])}
    embedded.start_endpoint(model)
    ways["lanes"] = embedded.servers.running[cached_sha256(path)]
    for samples in (3, 1):
        took = dict.fromkeys(ways, Took(0, 0.0, 0.0))
        for turn in range(ROUNDS):
            for way, served in ways.items():
                embedded.servers.running[cached_sha256(path)] = served
                asked = requests(model, questions)[turn::ROUNDS]
                more = asyncio.run(answer(asked, samples))
                old = took[way]
                took[way] = Took(old.tokens + more.tokens, old.cpu_s + more.cpu_s, old.wall_s + more.wall_s)
        show(name, samples, took["before"], took["lanes"])


def show(name: str, samples: int, before: Took, lanes: Took) -> None:
    """Print one row."""
    rates = [(took.tokens / took.cpu_s, took.tokens / took.wall_s) for took in (before, lanes)]
    (cpu_before, wall_before), (cpu, wall) = rates
    figures = f"{cpu_before:.0f} | {cpu:.0f} | {cpu / cpu_before:.2f} | {wall_before:.0f} | {wall:.0f}"
    print(f"| {name} | {samples} | {figures} | {wall / wall_before:.2f} |", flush=True)


def main() -> None:
    """Compare with both kinds of weights."""
    questions = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    print(f"{embedded.count_threads()} threads, {embedded.count_lanes()} lanes, load {os.getloadavg()[0]:.0f}\n")
    print("| weights | n | tokens a CPU second, before | lanes | ratio | tokens a second, before | lanes | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    packaged = embedded.find_packaged_weights(embedded.NAME)
    compare("Q4_1", packaged, questions)
    with TemporaryDirectory() as folder:
        path = Path(folder, "f16.gguf")
        gguf.write_trained(packaged, path, lambda _, weights: weights, "f16")
        compare("F16", path, questions)


if __name__ == "__main__":
    main()
