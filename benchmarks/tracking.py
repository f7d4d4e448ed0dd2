"""Prints the CPU that one tracked branch takes, in the run and in a tuned server: `python -m benchmarks.tracking`.

Trees are grown twice over answers that cost nothing, once with a task run a branch and once without; Linux alone.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from malt.config.spec import QuestionSource, RunSpec
from malt.hosting.private_prefect import PrefectServer
from malt.hosting.up import SHARED
from malt.llm.request import Complete, Completion, CompletionRequest
from malt.prompts import load_prompts
from malt.questions.question import Question
from malt.trees.growth import grow, requests_per_question

SPEC = RunSpec(name="tracking", questions=QuestionSource(source="none.jsonl"))
PROMPTS = load_prompts("general")
QUESTIONS = [Question(question_id=f"q{n}", question=f"What is {n} + 1?", ground_truth=f"{n + 1}") for n in range(75)]
BRANCHES = len(QUESTIONS) * sum(requests_per_question(SPEC).values())
SETTLED_S = 6.0
"""How long the server is given to write what it has heard last."""


async def answer(request: CompletionRequest) -> Sequence[Completion]:
    """Answer at once."""
    return [Completion(key, "Final Answer: 7", None, "stop", "none") for key in request.keys]


async def grow_all(complete: Complete) -> None:
    """Grow all trees at once, as a run does."""
    await asyncio.gather(*(grow(question, SPEC, PROMPTS, complete) for question in QUESTIONS))


async def cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds of CPU that this process takes for something."""
    started = time.process_time()
    await work()
    return time.process_time() - started


def server_cpu_s(pid: int) -> float:
    """Return the seconds of CPU that another process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def measure(server: PrefectServer) -> None:
    """Print the table."""
    from prefect import flow

    from tasks.growing import BranchAsker

    @flow
    async def tracked() -> None:
        await grow_all(BranchAsker(answer))  # type: ignore[arg-type]  # what a task run asks through may be anything

    await tracked()  # imports, connections and prepared statements are not counted
    await asyncio.sleep(SETTLED_S)
    before = server_cpu_s(server.process.pid)
    plain_s, run_s = await cpu_s(lambda: grow_all(answer)), await cpu_s(tracked)
    await asyncio.sleep(SETTLED_S)
    client_ms, server_ms = (1000 * s / BRANCHES for s in (run_s - plain_s, server_cpu_s(server.process.pid) - before))
    print(f"{BRANCHES} task runs; CPU of one, in milliseconds\n\n| run | server | together |\n|---:|---:|---:|")
    print(f"| {client_ms:.1f} | {server_ms:.1f} | {client_ms + server_ms:.1f} |")


def main() -> None:
    """Measure against a server of its own, set as `malt up` sets it."""
    with tempfile.TemporaryDirectory() as folder:
        server = PrefectServer(Path(folder), settings=SHARED)
        os.environ.update(server.environment)
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        server.wait_until_ready()
        asyncio.run(measure(server))
        server.stop()


if __name__ == "__main__":
    main()
