"""Commands as processes that are forked from one which has imported what a run needs: an import takes 3 s of CPU.

Such a process has a session, an environment and outputs of its own, as one has that a shell starts. Prefect is there
before its environment is, so it is told to read that again; a run that starts a server of its own is no case for this.
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
_LARGEST = 200_000
"""Bytes of a command and its environment."""
_NUMBER = 4
"""Bytes of a process's number, and of its exit code."""


class Process:
    """A command under way, with what the tests use of `subprocess.Popen`; its outputs are files, so it never waits."""

    def __init__(
        self, module: str, *arguments: object, environment: Mapping[str, str] | None = None, folder: Path = PROJECT
    ) -> None:
        """Start a module's `main`, with the caller's environment unless another is given."""
        self.returncode: int | None = None
        self._said: tuple[str, str] | None = None
        self._outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed with us
        self._told, telling = os.pipe()
        wanted = _Wanted(
            module=module,
            arguments=[str(argument) for argument in arguments],
            environment=dict(os.environ if environment is None else environment),
            folder=str(folder),
        )
        files = [telling, *(output.fileno() for output in self._outputs)]
        socket.send_fds(_template(), [json.dumps(wanted).encode()], files)
        os.close(telling)
        self.pid = self._read_number()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()

    @property
    def said(self) -> tuple[str, str]:
        """What is on stdout and on stderr by now."""
        return self._said or self._read_outputs()

    def poll(self) -> int | None:
        """Return the exit code, None while there is none."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode, self._said = self._read_number(), self._read_outputs()
            os.close(self._told)
            for output in self._outputs:
                output.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        if self.returncode is None:
            select.select([self._told], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0, *self.said)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was said."""
        self.wait(timeout)
        return self.said

    def send_signal(self, number: signal.Signals) -> None:
        """Send it, unless the process has ended."""
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

    def _read_number(self) -> int:
        told = os.read(self._told, _NUMBER)
        assert told, "nothing can be forked; `python -m tests.forking` says why"
        return int.from_bytes(told, "big", signed=True)


class _Wanted(TypedDict):
    """A command, and where to run it."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str


@cache
def _template() -> socket.socket:
    """Start the process from which all are forked, and return what it hears us by; it ends with this one."""
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
    """Import what a run does, and leave it to no garbage collection."""
    from malt.llm.provider import call

    for module in (MALT, "malt.engine.runner", "flows.generate", "pandas", "pyarrow.parquet"):
        importlib.import_module(module)
    call.warm_up()
    gc.freeze()
    assert threading.active_count() == 1, "what is forked has the thread that forks, and no other"


def _fork_for_all(requests: socket.socket) -> _Wanted | None:
    """Fork for each request; return it in the process that is to do it, and None once nobody is there to ask."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, _LARGEST, 3)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            _fork_and_tell(*files)
            wanted: _Wanted = json.loads(message)
            return wanted
        for each in files:
            os.close(each)
        _reap()


def _reap() -> None:
    """Bury the children that have ended; what they took of the CPU counts as ours."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _fork_and_tell(telling: int, out: int, err: int) -> None:
    """Fork once more, tell the child's number and at last its exit code; return in the child."""
    child = os.fork()
    if child:
        os.close(out)
        os.close(err)
        os.write(telling, child.to_bytes(_NUMBER, "big"))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(telling, code.to_bytes(_NUMBER, "big", signed=True))
        os._exit(0)
    os.close(telling)
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)


def _do(wanted: _Wanted) -> None:
    from prefect.context import refresh_global_settings_context

    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    tempfile.tempdir = None
    refresh_global_settings_context()
    sys.argv = [wanted["module"], *wanted["arguments"]]
    importlib.import_module(wanted["module"]).main()


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        mine = _fork_for_all(asked)
    if mine is None:
        _reap()
    else:
        _do(mine)
