"""Prints the load that a server of `malt up` can take, on SQLite and PostgreSQL: `python -m benchmarks.prefect_load`.

Three datasets of 300 questions grow at once, with a task run for each branch, while 160 runs are created through the
API, eight at a time. PostgreSQL needs `initdb` and `pg_ctl` on the PATH.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx

from malt.hosting.up import DATABASE_URL
from tests.flows.service.conftest import Prefect, Up, declared, in_form, start
from tests.postgres import Postgres, free_port
from tests.providers import ScriptedProvider

DATASETS = 3
CREATED = 160
AT_ONCE = 8
_PROBE_EVERY_S = 0.25
HEAD = ("server", "create, median ms", "95 %", "slowest s", "refused", "slowest read s", "failed runs", "locked",
        "dropped", "wall s")  # fmt: skip


class Figures(NamedTuple):
    """Measurements of one server."""

    seconds: list[float]
    """Duration of each `create_flow_run` call."""
    refused: int
    slowest_read_s: float
    failed_runs: int
    locked: int
    dropped: int
    wall_s: float


def measure(up: Up, provider: ScriptedProvider, folder: Path, questions: int) -> Figures:
    """Load a server; return the measurements."""
    client = Prefect(up)
    path = f"/deployments/{client.deployment('generate')['id']}/create_flow_run"
    started = time.monotonic()
    runs = [begin_dataset(client, provider, folder, number, questions) for number in range(DATASETS)]
    with probing(client) as reads, ThreadPoolExecutor(AT_ONCE) as pool:
        time.sleep(20)  # by now all three send requests
        answers = list(pool.map(lambda _: create_flow_run(client, path), range(CREATED)))
        ended = [client.ended(run)["state_type"] for run in runs]
    log = (up.data_dir / "prefect" / "server.log").read_text()
    return Figures(
        [seconds for seconds, _ in answers],
        sum(status >= httpx.codes.BAD_REQUEST for _, status in answers),
        max(reads),
        sum(state != "COMPLETED" for state in ended),
        log.count("OperationalError) database is locked"),
        log.lower().count("dropping") + log.lower().count("dropped"),
        time.monotonic() - started,
    )


def begin_dataset(client: Prefect, provider: ScriptedProvider, folder: Path, number: int, questions: int) -> str:
    """Start a run in which each branch is a task run; return its id."""
    own = folder / str(number)
    own.mkdir()
    spec = declared(f"load-{number}", own, provider, questions, run={"tracking": "branch"})
    form = in_form(spec)
    for role in form["roles"].values():
        role["samples"] = 2
    return str(client.trigger("generate", spec=form).raise_for_status().json()["id"])


def create_flow_run(client: Prefect, path: str) -> tuple[float, int]:
    """Create a run scheduled for tomorrow; return the duration in seconds and the status."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": tomorrow}}}
    began = time.monotonic()
    answer = client.http.post(path, json=body)
    return time.monotonic() - began, answer.status_code


@contextmanager
def probing(client: Prefect) -> Iterator[list[float]]:
    """Request a count of runs continuously; collect the duration of each response in seconds."""
    taken, done = [0.0], threading.Event()

    def probe() -> None:
        while not done.wait(_PROBE_EVERY_S):
            began = time.monotonic()
            client.http.post("/flow_runs/count", json={})
            taken.append(time.monotonic() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    yield taken
    done.set()
    thread.join()


def row(name: str, figures: Figures) -> str:
    """Return a table's row."""
    ordered = sorted(figures.seconds)
    created = f"{1000 * median(ordered):.0f} | {1000 * ordered[int(0.95 * len(ordered))]:.0f} | {ordered[-1]:.1f}"
    counted = f"{figures.refused} | {figures.slowest_read_s:.1f} | {figures.failed_runs} | {figures.locked}"
    return f"| {name} | {created} | {counted} | {figures.dropped} | {figures.wall_s:.0f} |"


def load(name: str, questions: int, **environment: str) -> None:
    """Start a server and its provider, load it, and print its row."""
    with tempfile.TemporaryDirectory() as folder, ScriptedProvider() as provider:
        up = start(
            Path(folder) / "data", "--port", str(free_port()), *(["--postgres"] if environment else []), **environment
        )
        try:
            print(row(name, measure(up, provider, Path(folder), questions)), flush=True)
        finally:
            up.stop()


def main() -> None:
    """Measure both databases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300, help="of each dataset")
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    arguments = parser.parse_args()
    os.environ.pop("PREFECT_API_URL", None)
    print(f"| {' | '.join(HEAD)} |\n|---{'|---:' * (len(HEAD) - 1)}|")
    if arguments.only != "postgres":
        load("SQLite", arguments.questions)
    if arguments.only != "sqlite" and Postgres.is_here():
        with Postgres() as server:
            url = server.url("postgres").replace("postgresql", "postgresql+asyncpg", 1)
            load("PostgreSQL", arguments.questions, **{DATABASE_URL: url})


if __name__ == "__main__":
    main()
