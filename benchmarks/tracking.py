"""Prints the CPU for one tracked branch, in the run and in a tuned server: `python -m benchmarks.tracking`.

Trees are read twice from a full store, once with a task run for each branch and once without. Linux only.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from malt.config.spec import RunSpec
from malt.engine.fill import fill_batch
from malt.engine.job import read_job
from malt.engine.run import Run
from malt.hosting.private_prefect import PrefectServer
from malt.hosting.up import SHARED
from malt.trees.replay import read_trees
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

QUESTIONS = 75
TASK_RUNS = QUESTIONS * (1 + 3 + 9 + 1)
SETTLED_S = 6.0
"""Time for the server to write the last events that it received."""


async def measure(server: PrefectServer, spec: RunSpec) -> None:
    """Print the table: the same stored answers, read with a task run for each branch and without."""
    from prefect import flow

    from flows.generate import BRANCHES_AT_ONCE, grow_branches

    job = read_job(spec)
    fill_batch(job, Run("stored"))

    @flow(task_runner=BRANCHES_AT_ONCE)
    async def tracked() -> None:
        await grow_branches(job, Run("tracked"))

    await tracked()  # imports, connections and prepared statements do not count
    await asyncio.sleep(SETTLED_S)
    before = server_cpu_s(server.process.pid)
    plain_s = await cpu_s(lambda: asyncio.to_thread(read_trees, job.questions, job.source))
    run_s = await cpu_s(tracked)
    await asyncio.sleep(SETTLED_S)
    client_ms, server_ms = (1000 * s / TASK_RUNS for s in (run_s - plain_s, server_cpu_s(server.process.pid) - before))
    print(f"{TASK_RUNS} task runs; CPU of one, in milliseconds\n\n| run | server | together |\n|---:|---:|---:|")
    print(f"| {client_ms:.1f} | {server_ms:.1f} | {client_ms + server_ms:.1f} |")


async def cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU seconds that this process uses for some work."""
    started = time.process_time()
    await work()
    return time.process_time() - started


def server_cpu_s(pid: int) -> float:
    """Return the CPU seconds of another process so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure against a separate server with the settings of `malt up`."""
    with tempfile.TemporaryDirectory() as folder:
        server = PrefectServer(Path(folder), settings=SHARED)
        os.environ.update(server.environment)
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        server.wait_until_ready()
        os.environ.update(MALT_DATA_DIR=folder, TEST_KEY="none")
        with ScriptedProvider() as provider:
            asyncio.run(measure(server, spec_of(provider, write_questions(Path(folder), QUESTIONS))))
        server.stop()


if __name__ == "__main__":
    main()
