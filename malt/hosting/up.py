"""`malt up`: a Prefect server, what prefect.yaml deploys, and a worker; what it started ends with this process."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

from malt.engine.signals import on_signal
from malt.errors import ConfigError
from malt.hosting.private_prefect import (
    ANSWER_LIMIT_S,
    TUNED,
    PrefectServer,
    check_answers,
    direct_to_loopback,
    last_words,
)
from malt.hosting.supervise import STOP_LIMIT_S

POOL = "malt"
"""The work pool that prefect.yaml deploys to."""
SHARED = {**TUNED, "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
"""What a server with a UI is set to."""
WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
"""How often it asks for work; Prefect's own 10 seconds are for servers with many workers."""
SERVER_STOP_LIMIT_S = 1.5
LOOK_EVERY_S = 0.5

Say = Callable[[str], None]


class Child(NamedTuple):
    """A process that has to last as long as the service; where it is killed, it is started again."""

    name: str
    has_ended: Callable[[], bool]
    log: Path
    log_start: int

    def check(self) -> None:
        """Raise `ConfigError` where it has ended by itself, or was killed too often."""
        if self.has_ended():
            said = last_words(self.log, self.log_start) or "it said nothing"
            raise ConfigError(f"the {self.name} ended by itself: {said} (see {self.log}); mend that, and start again")


def up(project: Path, data_dir: Path, port: int, say: Say) -> None:
    """Serve until a signal comes, with the flows of `project`; `say` is told the address of the UI.

    Raises `ConfigError` where something does not start, or does not last.
    """
    home = data_dir.resolve() / "prefect"
    os.environ["MALT_DATA_DIR"] = str(data_dir.resolve())  # a worker's flows run elsewhere
    stopping = threading.Event()
    with on_signal(stopping.set), ExitStack() as started:
        children = [] if adopted() else [start_server(home, port, started)]
        api_url = os.environ["PREFECT_API_URL"]
        make_pool(api_url)
        children.append(start_worker(project, home, started))
        deploy(project)
        say(f"Prefect's UI: {api_url.removesuffix('/api')}")
        say(f"for runs of `malt run` in it: export PREFECT_API_URL={api_url}")
        say(f"logs: {home}; Ctrl-C ends server, worker and the runs under way")
        while not stopping.wait(LOOK_EVERY_S):
            for child in children:
                child.check()


def adopted() -> bool:
    """Whether there is a server at `PREFECT_API_URL` to be used. Raises `ConfigError` where it does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if url:
        check_answers(url)
    return bool(url)


def start_server(home: Path, port: int, started: ExitStack) -> Child:
    """Start a server of our own, and let this process's Prefect commands use it."""
    os.environ.update(direct_to_loopback())
    settings = {**SHARED, "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui")}
    try:
        server = PrefectServer(home, port, settings)
    except OSError as error:
        raise ConfigError(
            f"a server on port {port}, with its records in {home}: {error}; choose another with --port or "
            "MALT_DATA_DIR, or set PREFECT_API_URL to the server that is there"
        ) from error
    started.callback(server.stop, SERVER_STOP_LIMIT_S)
    server.wait_until_ready()
    os.environ.update(server.environment)
    return Child("Prefect server", server.has_ended, server.log, server.log_start)


def make_pool(api_url: str) -> None:
    """Make the work pool where there is none."""
    body = json.dumps({"name": POOL, "type": "process"}).encode()
    request = urllib.request.Request(f"{api_url}/work_pools/", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S).close()  # noqa: S310 - the server that was checked
    except HTTPError as error:
        if error.code != 409:  # it is there
            raise ConfigError(f"{api_url}: the work pool {POOL!r} cannot be made there: {error}") from error


def start_worker(project: Path, home: Path, started: ExitStack) -> Child:
    """Start a worker that runs what is asked of the pool."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "worker.log"
    with path.open("ab") as log:
        command = [sys.executable, "-m", "malt.hosting.supervise", *prefect("worker", "start", "--pool", POOL)]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,  # its end tells the worker that this process has ended
            stdout=log,
            stderr=log,
            cwd=project,
            env={**os.environ, **WORKER},
            start_new_session=True,  # Ctrl-C is for this process, which ends the others in order
        )
        started.callback(end, process)
        return Child("worker", lambda: process.poll() is not None, path, log.tell())


def deploy(project: Path) -> None:
    """Deploy all that prefect.yaml names."""
    command = prefect("--no-prompt", "deploy", "--all")
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, start_new_session=True)  # noqa: S603
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-600:]
        raise ConfigError(f"{project / 'prefect.yaml'} cannot be deployed: {said}")


def prefect(*arguments: str) -> list[str]:
    """Return one of Prefect's own commands, run by this Python."""
    return [sys.executable, "-m", "prefect", *arguments]


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a tied process, and wait for it."""
    if process.stdin is not None:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S + 2)
    process.kill()
    process.wait()
