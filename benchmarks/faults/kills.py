"""Prints the results of runs under kill -9 at random moments: `python -m benchmarks.faults.kills [--rounds N]`.

The kills are divided among the faults: the run's own process, a worker of its process pool, its Prefect server, a Dask
worker, PostgreSQL, and for a deployment its run, its worker and the server. A run that ends is started
again; others have to continue. The script fails unless every dataset equals that of an undisturbed run, with no answer
lost and none requested twice.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import httpx
import psutil

from benchmarks.faults.stage import ASKING_S, LATENCY_S, SMALL, Account, Running, Stage, ended
from malt.config.loader import load_spec
from malt.datasets.version.dataset_version import open_version
from malt.hosting.private_prefect import PrefectServer, direct_to_loopback
from tests.flows.service.conftest import Prefect, Up, in_form
from tests.flows.service.conftest import start as start_service
from tests.postgres import Postgres, free_port
from tests.providers import ScriptedProvider

SETTLED_S = 10.0
"""Wait before *Retry* after a crash: the worker reports the crash twice, and the second report may undo a retry."""
MOST_RETRIES = 3
"""Most presses of *Retry*: on a busy machine the second report may come even later."""
AWAY_S = 3.0
"""Longest downtime of PostgreSQL."""
APART_S = 15.0
"""Pause between kills below `malt up`."""


class Place(NamedTuple):
    """Resources that all rounds share."""

    folder: Path
    provider: ScriptedProvider
    random: Random
    prefect: Mapping[str, str]
    """Environment variables that name a Prefect server shared by several runs, so that each need not start its own."""
    digest: str
    """Digest of an undisturbed run's dataset."""

    def moment(self) -> float:
        return self.random.uniform(0, ASKING_S)

    def stage(self, **environment: str) -> Stage:
        return Stage(Path(tempfile.mkdtemp(dir=self.folder)) / "round", self.provider, environment)


KillTest = Callable[[Place, int], Account]


def below(process: Running, sign: str, file: str = "cmdline") -> list[int]:
    """Return the descendants whose command line (or another file in /proc) contains a text."""
    return [pid for pid in _descendants(process.pid) if sign in read_proc(pid, file)]


def _descendants(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        return [each.pid for each in psutil.Process(pid).children(recursive=True)]
    return []


def read_proc(pid: int, file: str) -> str:
    """Read a file in /proc about a process; return nothing if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def kill(pid: int) -> float:
    """Kill a process; return the time of the kill."""
    killed_at = time.monotonic()
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signal.SIGKILL)
    return killed_at


def settle(account: Account, place: Place, stage: Stage, killed_at: float, digest: str | None, said: str = "") -> None:
    """Add a round's result to the account; if its digest differs, print the output and keep its files."""
    account.rounds += 1
    if digest != place.digest:
        kept = Path(tempfile.mkdtemp(prefix="malt-otherwise-"))
        shutil.copytree(place.folder / "peace/data", kept / "peace")
        shutil.copytree(stage.folder, kept / "round")
        print(f"round {account.rounds} came out as {digest} (see {kept}): {said}", file=sys.stderr, flush=True)
    account.same += digest == place.digest
    account.repeats += stage.repeats()
    account.seconds.append(time.monotonic() - killed_at)


def kill_run(place: Place, kills: int) -> Account:
    """Kill `malt run`, and start it again until it is done."""
    return kill_and_rerun(place, kills, lambda process: process.pid)


def kill_pool_worker(place: Place, kills: int) -> Account:
    """Kill a worker process of a run, which ends the run, and start the run again until it is done."""

    def victim(process: Running) -> int | None:
        workers = below(process, "spawn_main")
        return place.random.choice(workers) if workers else None

    return kill_and_rerun(place, kills, victim, "run.task_runner=processes", "run.tracking=shard")


def kill_and_rerun(place: Place, kills: int, victim: Callable[[Running], int | None],
                   *overrides: str) -> Account:  # fmt: skip
    """Kill a process whose death ends the run, and start the run again until it is done."""
    account = Account()
    while account.kills < kills:
        stage, killed_at = place.stage(**place.prefect), 0.0
        process = stage.start(*overrides)
        while account.kills < kills and stage.wait_for_requests(process, place.moment()):
            pid = victim(process)
            if pid is None:  # its workers finished before the kill
                break
            killed_at = kill(pid)
            account.kills += 1
            process.communicate()
            stage.look_after_kill(killed_at, account)
            process = stage.start(*overrides)
        done = ended(process)
        settle(account, place, stage, killed_at or time.monotonic(), done.digest, done.said)
    return account


def kill_beside(place: Place, kills: int, strike: Callable[[Stage, Running], float | None],
                *overrides: str, **environment: str) -> Account:  # fmt: skip
    """Kill something that a run needs, once in each run, which has to continue; `strike` returns the time, or None."""
    account = Account()
    while account.kills < kills:
        stage = place.stage(**environment)
        process = stage.start(*overrides)
        killed_at = strike(stage, process) if stage.wait_for_requests(process, place.moment()) else None
        if killed_at is None:  # the run finished before the kill
            process.communicate()
            continue
        account.kills += 1
        done = ended(process)
        stage.look_after_kill(killed_at, account)
        settle(account, place, stage, killed_at, done.digest, done.said)
    return account


def kill_server(place: Place, kills: int) -> Account:
    """Kill the Prefect server that `malt run` started for itself."""

    def strike(_: Stage, process: Running) -> float | None:
        servers = below(process, "malt.hosting.prefect_server")
        return kill(servers[0]) if servers else None

    return kill_beside(place, kills, strike)


def kill_dask_worker(place: Place, kills: int) -> Account:
    """Kill one of the worker processes of the run's own Dask cluster."""

    def strike(_: Stage, process: Running) -> float | None:
        workers = below(process, "spawn_main")
        return kill(place.random.choice(workers)) if workers else None

    return kill_beside(place, kills, strike, "run.task_runner=dask", **place.prefect)


def kill_postgres(place: Place, kills: int) -> Account:
    """Kill PostgreSQL's postmaster, and start it again a little later; every run has its own database."""
    account = Account()
    with Postgres() as postgres:

        def strike(_stage: Stage, _process: Running) -> float:
            killed_at = kill(postgres.pid)
            time.sleep(place.random.uniform(0, AWAY_S))
            postgres.start()
            return killed_at

        for number in range(kills):
            store = {**place.prefect, "MALT_STORE_URL": postgres.database(f"round{number}")}
            add(account, kill_beside(place, 1, strike, **store))
    return account


def add(account: Account, further: Account) -> None:
    """Add the counts of one account to another."""
    for name, value in vars(further).items():
        setattr(account, name, getattr(account, name) + value)


def kill_flow_run(place: Place, kills: int) -> Account:
    """Kill the process of a deployment's run; its worker notices, and *Retry* continues the run."""

    def strike(up: Up, prefect: Prefect, flow_run: str, stage: Stage, account: Account) -> float:
        killed_at = kill(below(up.process, f"FLOW_RUN_ID={flow_run}", "environ")[0])
        assert prefect.ended(flow_run)["state_type"] == "CRASHED"
        stage.look_after_kill(killed_at, account)
        for press in range(1, MOST_RETRIES + 1):
            time.sleep(SETTLED_S)
            if (state := prefect.retry(flow_run)["state_type"]) == "COMPLETED":
                break
            print(f"Retry {press} of {flow_run} ended as {state}", file=sys.stderr, flush=True)
        return killed_at

    return in_service(place, kills, strike)


def kill_worker(place: Place, kills: int) -> Account:
    """Kill the worker of `malt up`; the run continues without it, and the next run gets a new worker."""

    def strike(up: Up, prefect: Prefect, flow_run: str, _stage: Stage, _account: Account) -> float:
        killed_at = kill(below(up.process, "worker start")[-1])
        assert prefect.ended(flow_run)["state_type"] == "COMPLETED"
        return killed_at

    return in_service(place, kills, strike)


def kill_service_server(place: Place, kills: int) -> Account:
    """Kill the Prefect server of `malt up` under a deployment's run."""

    def strike(up: Up, prefect: Prefect, flow_run: str, _stage: Stage, _account: Account) -> float:
        killed_at = kill(below(up.process, "malt.hosting.prefect_server")[0])
        wait_until_up(up.api_url)
        assert prefect.ended(flow_run)["state_type"] == "COMPLETED"
        return killed_at

    return in_service(place, kills, strike)


def wait_until_up(api_url: str) -> None:
    """Wait for a server that is restarting."""
    while True:
        try:
            httpx.get(f"{api_url}/health", timeout=60).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return


def in_service(place: Place, kills: int, strike: Callable[[Up, Prefect, str, Stage, Account], float]) -> Account:
    """Strike once in each run of the deployment; the service's store is emptied before each run."""
    account, first = Account(), place.stage()
    with ExitStack() as service:
        up = start_service(first.data_dir, "--port", str(free_port()), TEST_KEY="key")
        service.callback(up.stop)
        prefect = Prefect(up)
        service.callback(prefect.http.close)
        while account.kills < kills:
            for made in ("store.db", "store.db-wal", "store.db-shm"):
                (up.data_dir / made).unlink(missing_ok=True)
            shutil.rmtree(up.data_dir / "datasets", ignore_errors=True)
            stage = place.stage()
            stage.store_url = f"sqlite:///{up.data_dir / 'store.db'}"
            flow_run = prefect.trigger("generate", spec=in_form(load_spec(stage.config, SMALL)))
            stage.wait_for_requests(up.process, place.moment())
            killed_at = strike(up, prefect, flow_run.raise_for_status().json()["id"], stage, account)
            account.kills += 1
            digest = open_version("sums", up.data_dir / "datasets").manifest.content_sha256
            settle(account, place, stage, killed_at, digest)
            time.sleep(APART_S)
    return account


FAULTS: dict[str, KillTest] = {
    "`malt run`": kill_run,
    "a worker of `processes`": kill_pool_worker,
    "its Prefect server": kill_server,
    "PostgreSQL": kill_postgres,
    "a Dask worker": kill_dask_worker,
    "a deployment's run": kill_flow_run,
    "its worker": kill_worker,
    "the server of `malt up`": kill_service_server,
}


def row_of(name: str, account: Account) -> str:
    """Return a line of the table."""
    window = f"{len(account.in_window)} ({1000 * max([0.0, *account.in_window]):.0f} ms)"
    took = f"{median(account.seconds):.1f}"
    same = f"{account.same} of {account.rounds}"
    return f"| {name} | {account.kills} | {same} | {account.repeats} | {account.lost} | {window} | {took} |"


@contextmanager
def place_for(seed: int) -> Iterator[Place]:
    """Make one undisturbed run, and yield the shared resources with its digest."""
    os.environ.update(direct_to_loopback())
    made = tempfile.TemporaryDirectory(prefix="malt-faults-", ignore_cleanup_errors=True)  # the killed may still write
    with made as folder, ScriptedProvider() as provider:
        server = PrefectServer(Path(folder) / "prefect")
        server.wait_until_ready()
        provider.latency_s = LATENCY_S
        peace = ended(Stage(Path(folder) / "peace", provider, server.client_settings).start())
        assert peace.code == 0, peace.said
        assert peace.digest is not None
        yield Place(Path(folder), provider, Random(seed), server.client_settings, peace.digest)
        server.stop()


def main(kills: int, seed: int, only: str) -> None:
    """Print the table."""
    faults = {name: kill_test for name, kill_test in FAULTS.items() if only in name}
    print(f"seed {seed}\n")
    print("| killed | times | same digest | repeats | lost | in the window (longest) | s to the end, median |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    sound = True
    with place_for(seed) as place:
        for number, (name, kill_test) in enumerate(faults.items()):
            share = kills // len(faults) + (number < kills % len(faults))
            account = kill_test(place, share) if share else Account()
            print(row_of(name, account) if share else f"| {name} | 0 | | | | | |", flush=True)
            sound &= account.same == account.rounds and not account.repeats + account.lost
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50, help="how often something is killed")
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--only", default="", metavar="PART", help="only what has this in its name")
    chosen = parser.parse_args()
    main(chosen.rounds, chosen.seed, chosen.only)
