"""`malt up`: a Prefect server, the deployments of prefect.yaml, and a worker, which all end with this process."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from malt.canonical_json import digest
from malt.config.spec import RunSpec
from malt.engine.signals import on_signal
from malt.errors import ConfigError
from malt.files import make_private_folder
from malt.hosting import supervise
from malt.hosting.access import AUTH_STRING, LOOPBACK, SIGN_IN_PATH, WILDCARDS, own_origins, post_json, warn_if_open
from malt.hosting.postgres import PostgresServer
from malt.hosting.private_prefect import (
    ANSWER_LIMIT_S,
    TUNED,
    PrefectServer,
    check_answers,
    direct_to_loopback,
    last_line,
)
from malt.processes import weigh_session

_POOL = "malt"
"""The work pool that prefect.yaml deploys to."""
DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SHARED = {
    **TUNED,
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
}
"""Settings of a server with a UI."""
_WORKER_NAME = f"malt up on {socket.gethostname()}"
"""Name of this machine's worker; Prefect labels its runs with it."""
_WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
"""Seconds between the worker's polls for work; Prefect's default of 10 is for servers with many workers."""
_UNDER_WAY = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}, "limit": 200}
_CRASHED = {"type": "CRASHED", "message": "`malt up` and its worker were killed, and this run with them."}
_NICENESS = 7
"""Niceness of the worker and its runs, so that the server's pages stay responsive. With 5, the server takes up to 6 s
to answer beside three large runs on two cores; with 10, a run gets a tenth of other processes' share, not a fifth."""
_SERVER_STOP_LIMIT_S = 1.5
_LOOK_EVERY_S = 0.5

Say = Callable[[str], None]


class _Child(NamedTuple):
    """A process that the service needs for as long as it runs."""

    name: str
    has_ended: Callable[[], bool]
    log: Path
    log_start: int

    def check(self) -> None:
        """Raise `ConfigError` if the process has ended."""
        if self.has_ended():
            reason = last_line(self.log, self.log_start) or "its log is empty"
            raise ConfigError(f"the {self.name} has ended: {reason} (see {self.log}); fix that, and start again")


def up(
    project: Path, data_dir: Path, say: Say, *, host: str, port: int, redeploy: bool = False, postgres: bool = False
) -> None:
    """Serve the flows of `project` until a signal to stop; print the address of the UI with `say`.

    `redeploy` resets all deployments to prefect.yaml; `postgres` keeps the server's records in PostgreSQL.
    Raises `ConfigError` if the server or the worker does not start, or ends by itself.
    """
    home = data_dir.resolve() / "prefect"
    os.environ["MALT_DATA_DIR"] = str(data_dir.resolve())  # absolute: a worker's flows run in another folder
    stopping = threading.Event()
    with on_signal(stopping.set), ExitStack() as started:
        server = None if _is_server_named() else _start_server(home, host, port, started, postgres=postgres)
        api_url = os.environ["PREFECT_API_URL"]
        lost = _mark_lost_runs(api_url) if server is not None else []
        _make_pool(api_url)
        children = [_start_worker(project, home, started)]
        deployed = deploy(project, api_url, redeploy=redeploy)
        if server is not None:
            children.append(_Child("Prefect server", server.has_ended, server.log, server.log_start))
        for line in _greeting(api_url, home, host, server, deployed):
            say(line)
        for run in lost:
            say(f"{run}: was running when `malt up` was killed; marked as crashed, Retry asks for what is missing")
        while not stopping.wait(_LOOK_EVERY_S):
            for child in children:
                child.check()


def _is_server_named() -> bool:
    """Whether PREFECT_API_URL names a server. Raises `ConfigError` if that does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        check_answers(url)
        warn_if_open(url, ANSWER_LIMIT_S)
    return bool(url)


def _start_server(home: Path, host: str, port: int, started: ExitStack, *, postgres: bool) -> PrefectServer:
    """Start our own server, and set the environment so that this process's Prefect commands use it."""
    os.environ.update(direct_to_loopback())
    settings = {**SHARED, "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui")}
    if postgres:
        settings[DATABASE_URL] = _find_postgres(home, started)
    if host in WILDCARDS:  # browsers on other machines use the host name
        settings["PREFECT_SERVER_UI_API_URL"] = f"{own_origins(host, port)[0]}/api"
    try:
        server = PrefectServer(home, port, settings, host)
    except OSError as error:
        raise ConfigError(
            f"the server cannot start on port {port} of {host} with records in {home}: {error}; choose others with "
            "--port or MALT_DATA_DIR, or set PREFECT_API_URL to a server that is running"
        ) from error
    started.callback(server.stop, _SERVER_STOP_LIMIT_S)
    server.wait_until_ready()
    os.environ.update(server.environment)
    return server


def _find_postgres(home: Path, started: ExitStack) -> str:
    """Return the URL of the PostgreSQL database that the environment names, else of a server started here."""
    named = os.environ.get(DATABASE_URL, "")
    if named.startswith("postgresql"):
        return named
    server = PostgresServer(home)
    started.callback(server.stop)
    return server.url


def _greeting(api_url: str, home: Path, host: str, server: PrefectServer | None, deployed: "Deployed") -> Iterable[str]:
    ui, export = api_url.removesuffix("/api"), f"export PREFECT_API_URL={api_url}"
    yield f"Prefect's UI: {ui}"
    if server is not None:
        yield f"to sign in, once a browser: {ui}{SIGN_IN_PATH}#{server.auth_string}"
        export += f' {AUTH_STRING}="$(cat {home / "auth"})"'
    if server is not None and host not in LOOPBACK:
        yield (
            f"warning: the server listens on {host}: anyone on that network with the string above can run code as you, "
            "and nothing is encrypted; leave --host out, and use a tunnel (ssh -L)"
        )
    yield f"to see runs of `malt run` there: {export}"
    yield from deployed.lines()
    yield f"logs: {home}; Ctrl-C ends server, worker and the runs under way"


def _make_pool(api_url: str) -> None:
    status, reply = post_json(f"{api_url}/work_pools/", {"name": _POOL, "type": "process"}, ANSWER_LIMIT_S)
    if status not in (201, 409):  # 409: it exists
        raise ConfigError(f"{api_url}: the work pool {_POOL!r} cannot be created there: {status} {reply}")


def _start_worker(project: Path, home: Path, started: ExitStack) -> _Child:
    """Start a worker for the runs of the work pool."""
    make_private_folder(home)
    log = home / "worker.log"
    log_start = log.stat().st_size if log.exists() else 0
    command = _prefect("worker", "start", "--pool", _POOL, "--name", _WORKER_NAME)
    process = supervise.start(command, log, project, **_WORKER)
    os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    weigh_session(process.pid)
    started.callback(supervise.end, process)
    return _Child("worker", lambda: process.poll() is not None, log, log_start)


class Deployed(NamedTuple):
    """Result of `deploy`."""

    updated: tuple[str, ...]
    """Names of the deployments that were created or replaced."""
    kept: tuple[str, ...]
    """Names of the deployments that were left alone, with their settings from the UI."""

    def lines(self) -> Iterable[str]:
        if self.updated:
            yield f"deployed: {', '.join(self.updated)}"
        if self.kept:
            yield f"deployed before, and left as set in the UI: {', '.join(self.kept)} (--redeploy resets them)"


def deploy(project: Path, api_url: str, *, redeploy: bool = False) -> Deployed:
    """Deploy the deployments of prefect.yaml that the server lacks, or has in another version.

    A deployment's version holds the digest of its text in prefect.yaml.
    """
    declared = _read_project(project / "prefect.yaml")
    wanted = {each["name"]: {**each, "version": _version_of(each)} for each in declared["deployments"]}
    there = {} if redeploy else _deployed_versions(api_url)
    changed = [each for name, each in wanted.items() if there.get(name) != each["version"]]
    if changed:
        _prefect_deploy(project, {**declared, "deployments": changed})
    names = tuple(each["name"] for each in changed)
    return Deployed(names, tuple(name for name in wanted if name not in names))


def _read_project(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # it has no types

    project: dict[str, Any] = yaml.safe_load(path.read_text())
    return {name: value for name, value in project.items() if name != "definitions"}


def _version_of(deployment: Mapping[str, Any]) -> str:
    """Return a version that changes with a deployment's text, or with the form that Prefect draws from our code."""
    text = json.loads(json.dumps(deployment, default=str))
    return f"malt-{version('malt-trees')}-{digest([text, RunSpec.model_json_schema()])[:12]}"


def _deployed_versions(api_url: str) -> dict[str, str]:
    status, found = post_json(f"{api_url}/deployments/filter", {"limit": 200}, ANSWER_LIMIT_S)
    if status != 200:
        raise ConfigError(f"{api_url}: its deployments cannot be read: {status} {found}")
    return {each["name"]: each["version"] for each in found}


def _prefect_deploy(project: Path, declared: Mapping[str, Any]) -> None:
    """Run `prefect deploy` on a project file, written as JSON since that is valid YAML."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(declared, file, default=str)
        file.flush()
        command = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", file.name)
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, start_new_session=True)  # noqa: S603
    if done.returncode:
        output = " ".join((done.stdout + done.stderr).split())[-600:]
        raise ConfigError(f"{project / 'prefect.yaml'} cannot be deployed: {output}")


def _prefect(*arguments: str) -> list[str]:
    """Return the command line of one of Prefect's commands, run by this Python."""
    return [sys.executable, "-m", "prefect", *arguments]


# Runs that were running when `malt up` was killed: the next `malt up` marks them as crashed, so that Retry works.


def _mark_lost_runs(api_url: str) -> list[str]:
    """Mark runs of this machine's worker whose process no longer exists as crashed; return their names."""
    status, found = post_json(f"{api_url}/flow_runs/filter", _UNDER_WAY, ANSWER_LIMIT_S)
    if status != 200:
        raise ConfigError(f"{api_url}: its runs cannot be read: {status} {found}")
    ours = [run for run in found if run["labels"].get("prefect.worker.name") == _WORKER_NAME]
    lost = [run for run in ours if run["infrastructure_pid"] and not _is_alive(run)]
    for run in lost:
        post_json(f"{api_url}/flow_runs/{run['id']}/set_state", {"state": _CRASHED, "force": True}, ANSWER_LIMIT_S)
    return [run["name"] for run in lost]


def _is_alive(run: Mapping[str, Any]) -> bool:
    """Whether a run's process is alive; a process that started after the run merely reuses the id."""
    with suppress(psutil.NoSuchProcess, ValueError):
        created = psutil.Process(int(run["infrastructure_pid"])).create_time()
        began = run["start_time"] or run["state"]["timestamp"]
        return bool(created <= datetime.fromisoformat(began).timestamp())
    return False
