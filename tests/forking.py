"""Commands run in processes forked from a template that has imported Prefect and LiteLLM, which takes 3 s of CPU.

Like a process started by a shell, each has its own session, environment and outputs. Prefect was imported under the
template's environment, so it reloads its settings; do not use this for a run that starts a Prefect server.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self, TypedDict

PROJECT = Path(__file__).parent.parent
MALT = "malt.cli.main"
_MAX_BYTES = 200_000
"""Largest size of a command and its environment, in bytes."""
_INT_BYTES = 4
"""Size of a process id or an exit code on the pipe, in bytes."""


class Process:
    """A running command, with the parts of `subprocess.Popen` that tests use; outputs are files, so none blocks it."""

    def __init__(
        self, module: str, *arguments: object, environment: Mapping[str, str] | None = None, folder: Path = PROJECT
    ) -> None:
        """Start a module's `main`, by default in the caller's environment."""
        self.returncode: int | None = None
        self._final_outputs: tuple[str, str] | None = None
        self._outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed with us
        self._status_pipe, status_writer = os.pipe()
        command = _Command(
            module=module,
            arguments=[str(argument) for argument in arguments],
            environment=dict(os.environ if environment is None else environment),
            folder=str(folder),
        )
        files = [status_writer, *(output.fileno() for output in self._outputs)]
        socket.send_fds(_template(), [json.dumps(command).encode()], files)
        os.close(status_writer)
        self.pid = self._read_int()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()

    @property
    def said(self) -> tuple[str, str]:
        """Text on stdout and on stderr so far."""
        return self._final_outputs or self._read_outputs()

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and select.select([self._status_pipe], [], [], 0)[0]:
            self.returncode, self._final_outputs = self._read_int(), self._read_outputs()
            os.close(self._status_pipe)
            for output in self._outputs:
                output.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process exits, and return its exit code."""
        if self.returncode is None:
            select.select([self._status_pipe], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0, *self.said)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until the process exits, and return its stdout and stderr."""
        self.wait(timeout)
        return self.said

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has exited."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_outputs(self) -> tuple[str, str]:
        out, err = (
            os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0).decode() for output in self._outputs
        )
        return out, err

    def _read_int(self) -> int:
        data = os.read(self._status_pipe, _INT_BYTES)
        assert data, "nothing can be forked; `python -m tests.forking` says why"
        return int.from_bytes(data, "big", signed=True)


class _Command(TypedDict):
    """A command, and where to run it."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str


@cache
def _template() -> socket.socket:
    """Start the process that all others are forked from, and return the socket to it; it exits with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.forking", str(theirs.fileno())]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=[theirs.fileno()]
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _import_all() -> None:
    """Import the modules of a run, and exempt them from garbage collection."""
    from malt.llm.provider import call

    for module in (MALT, "malt.engine.runner", "flows.generate", "pandas", "pyarrow.parquet"):
        importlib.import_module(module)
    call.warm_up()
    gc.freeze()
    assert threading.active_count() == 1, "what is forked has the thread that forks, and no other"


def _serve_forks(requests: socket.socket) -> _Command | None:
    """Fork for each request and return it in the forked process; return None here once the client closes the socket."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, _MAX_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            _fork_and_report(*files)
            command: _Command = json.loads(message)
            return command
        for each in files:
            os.close(each)
        _reap()


def _reap() -> None:
    """Reap exited children, so that their CPU time counts as this process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _fork_and_report(status_writer: int, out: int, err: int) -> None:
    """Fork again; the parent sends the child's process id and then its exit code, the child returns."""
    child = os.fork()
    if child:
        os.close(out)
        os.close(err)
        os.write(status_writer, child.to_bytes(_INT_BYTES, "big"))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status_writer, code.to_bytes(_INT_BYTES, "big", signed=True))
        os._exit(0)
    os.close(status_writer)
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)


def _do(command: _Command) -> None:
    from prefect.context import refresh_global_settings_context

    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    tempfile.tempdir = None
    refresh_global_settings_context()
    sys.argv = [command["module"], *command["arguments"]]
    importlib.import_module(command["module"]).main()


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        mine = _serve_forks(asked)
    if mine is None:
        _reap()
    else:
        _do(mine)
