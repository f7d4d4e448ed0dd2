"""Pool of killable processes, for graders that may hang and for users' graders.

Each process has a thread here that sends it one call at a time. A call past its time limit costs one process, never
the run. Each process is a new Python interpreter, so the user's script needs no `if __name__ == "__main__"`.
"""

import asyncio
import atexit
import ctypes
import importlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar, cast

_Result = TypeVar("_Result")

_M_MMAP_THRESHOLD = -3
START_LIMIT_S = 120.0
"""Seconds a process may take to start Python and import what a call needs; a call's own limit starts later."""

_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from malt.grading.process_pool import work
work(int(sys.argv[1]))
"""


class CallFailed(Exception):  # noqa: N818 - named for what happened to the call
    """A call in the pool has no result: it passed its limit, raised, or its process died. The message says which."""


class _Call(NamedTuple):
    """One call for a process of the pool; `function` is the import name."""

    function: str
    arguments: tuple[object, ...]
    timeout_s: float
    future: Future[object]


async def run_in_pool(function: Callable[..., _Result], *arguments: object, timeout_s: float) -> _Result:
    """Call a module's function in a process of the pool and return what it returns; arguments and result are pickled.

    The limit starts when the process starts on this call; waiting for a free process and its imports do not count.
    Works from any event loop and thread. Raises `CallFailed`.
    """
    return await asyncio.wrap_future(submit(function, *arguments, timeout_s=timeout_s))


def submit(function: Callable[..., _Result], *arguments: object, timeout_s: float) -> "Future[_Result]":
    """Do the same as `run_in_pool`, for a caller without an event loop."""
    future: Future[object] = Future()
    _shared_pool().calls.put(_Call(f"{function.__module__}:{function.__qualname__}", arguments, timeout_s, future))
    return cast("Future[_Result]", future)


def worker_pids() -> list[int]:
    """Return the ids of the pool's live processes."""
    return _shared_pool().pids


def _shared_pool() -> "_Pool":
    """Return this process's pool, started on first use; a forked child does not share its parent's."""
    with _POOLS_LOCK:
        return _pool_of(os.getpid())


_POOLS_LOCK = threading.Lock()


@cache
def _pool_of(_pid: int) -> "_Pool":
    """Start a pool: one process more than processors, so that a hanging one leaves none idle, but at most 4."""
    pool = _Pool(min(4, (os.cpu_count() or 1) + 1))
    atexit.register(pool.close)
    return pool


def _free_at_once() -> None:
    """Make freed blocks of 1 MiB and more, such as received results, go back to the system; glibc would keep them."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


class _Pool:
    """`size` threads, each with a process that it starts for its first call."""

    def __init__(self, size: int) -> None:
        _free_at_once()
        self.calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._workers = [_Worker() for _ in range(size)]
        for worker in self._workers:
            threading.Thread(target=worker.serve, args=(self.calls,), name="grader", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        processes = [worker.process for worker in self._workers]  # read once: a worker may lose its own meanwhile
        return [process.pid for process in processes if process and process.poll() is None]

    def close(self) -> None:
        """Kill the processes, and let no new one start."""
        for worker in self._workers:
            worker.closed = True
            worker.stop()


class _Worker:
    """One process, started when it is needed, and started again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False
        self._pipe: Connection | None = None

    def serve(self, calls: "queue.SimpleQueue[_Call]") -> None:
        while True:
            call = calls.get()
            if call.future.set_running_or_notify_cancel():
                self._answer(call)

    def _answer(self, call: _Call) -> None:
        try:
            result = self._run(call)
        except CallFailed as failure:
            call.future.set_exception(failure)
        except Exception as error:
            self.stop()
            call.future.set_exception(CallFailed(f"{type(error).__name__}: {error}"))
        else:
            call.future.set_result(result)

    def stop(self) -> None:
        """Kill the process, if there is one, with its whole process group."""
        process, pipe = self.process, self._pipe
        self.process = self._pipe = None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if pipe is not None:
            pipe.close()

    def _run(self, call: _Call) -> object:
        pipe = self._send(call) or self._send(call)  # a process that died while idle is replaced once
        if pipe is None:
            raise CallFailed("its process does not start")
        try:
            succeeded, result = self._receive(pipe, call.timeout_s)
        except (EOFError, OSError):
            self.stop()
            raise CallFailed("its process died") from None
        if not succeeded:
            raise CallFailed(str(result))
        return result

    def _receive(self, pipe: Connection, timeout_s: float) -> tuple[bool, object]:
        if not pipe.poll(timeout_s):
            self.stop()
            raise CallFailed(f"no result within {timeout_s:g} s")
        return cast(tuple[bool, object], pipe.recv())

    def _send(self, call: _Call) -> Connection | None:
        """Send the call and wait until the process starts on it; return None if the process died."""
        with suppress(EOFError, OSError):
            pipe = self._pipe or self._start()
            pipe.send((call.function, call.arguments, call.timeout_s))
            if pipe.poll(START_LIMIT_S):
                pipe.recv()
                return pipe
        self.stop()
        return None

    def _start(self) -> Connection:
        if self.closed:
            raise OSError("the pool is closed")
        ours, theirs = Pipe()
        # Own process group: Ctrl-C reaches only the program, which ends its workers. Stdout stays clean for --json.
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our code
            [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps([*sys.path, str(Path.cwd())])],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=2,
            process_group=0,
        )
        theirs.close()
        self._pipe = ours
        return ours


def work(descriptor: int) -> None:
    """Run calls until the other end of the pipe closes: the body of a worker process."""
    pipe = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            name, arguments, timeout_s = pipe.recv()
            function = _make_ready(name)
            pipe.send("started")
            # If the program is killed now, only this kernel timer ends the call.
            signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s + 5)
            pipe.send(_attempt(function, arguments))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _make_ready(name: str) -> Callable[..., object]:
    """Import a function and call its module's `prepare_process`, if any: slow imports before a call's limit starts."""
    function = resolve(name)
    getattr(sys.modules[name.partition(":")[0]], "prepare_process", int)()
    return function


def _attempt(function: Callable[..., object], arguments: tuple[object, ...]) -> tuple[bool, object]:
    try:
        return True, function(*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {str(error)[:500]}"


@cache
def resolve(name: str) -> Callable[..., object]:
    """Import a function by `module:name` or `file.py:name`; raises what the import raises, or AttributeError."""
    module, _, path = name.partition(":")
    found: object = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is {type(found).__name__}, not a function")
    return found


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path; modules beside it can be imported by name, as from a script."""
    file = path.resolve()
    spec = importlib.util.spec_from_file_location(f"file {file}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module
