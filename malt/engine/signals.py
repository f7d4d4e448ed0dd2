"""Running a flow so that Ctrl-C, SIGTERM and a terminal's end stop it cleanly: what is under way may arrive, no more.

The flow runs in a thread: in the main one Prefect takes SIGTERM for itself, and raises it wherever the loop stands.
"""

import asyncio
import contextvars
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from malt.llm.client.session import stop_sessions

T = TypeVar("T")

_FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIGNALS = (*_FROM_TERMINAL, signal.SIGTERM)
_INTERRUPTED = 130
MESSAGE = "interrupted; what was paid for is in the store, run again to go on"
_LOOK_EVERY_S = 0.2
_CURSOR = "\x1b[?25h\r\x1b[K"
"""Shows the cursor, which progress bars hide, on a line of its own."""
STOP_LIMIT_S = 9.0
"""Seconds after a signal until the process ends, whatever still holds it up."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. A signal stops it, and raises `KeyboardInterrupt`; a second one ends the process."""
    running = _Running(work)
    with on_signal(running.interrupt):  # before it starts: what it first prints may be answered by a signal
        running.start()
        return running.result()


class _Running(Generic[T]):
    """A coroutine under way on a loop and in a thread of its own."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work, self._interrupted = work, False
        self._stopping = threading.Thread(target=stop_sessions, daemon=True)
        self._started: Future[Callable[[], object]] = Future()
        self._outcome: Future[T] = Future()

    def start(self) -> None:
        in_context = contextvars.copy_context().run
        threading.Thread(target=in_context, args=(self._run,), name="malt-run", daemon=True).start()

    def result(self) -> T:
        """Wait for the end, and look now and then: a signal may wake another thread, and is acted on in this one."""
        while not self._outcome.done():
            wait([self._outcome], _LOOK_EVERY_S)
        try:
            outcome = self._outcome.result()
        except BaseException:
            if not self._interrupted:
                raise
        if self._interrupted:
            self._stopping.join()
            raise KeyboardInterrupt
        return outcome

    def interrupt(self) -> None:
        """Stop asking, and cancel the work; the process ends soon, whatever comes of that."""
        if self._interrupted:
            give_up()
        self._interrupted = True
        _set_deadline(give_up)
        self._stopping.start()
        self._started.add_done_callback(lambda started: started.result()())

    def _run(self) -> None:
        try:
            self._outcome.set_result(asyncio.run(self._cancellable()))
        except BaseException as error:
            self._outcome.set_exception(error)

    async def _cancellable(self) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(self._work)
        self._started.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await task


@contextmanager
def on_signal(act: Callable[[], None]) -> Iterator[None]:
    """Act on what ends a process, with nohup not on SIGHUP; outside the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outlives = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    before = {each: signal.signal(each, lambda *_: act()) for each in _SIGNALS if each not in outlives}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def give_up() -> None:
    """End the process, whatever it waits for: all that came is committed, and the private server ends with it."""
    terminal = _CURSOR if os.isatty(2) else ""
    with suppress(OSError):  # the terminal is gone
        os.write(2, f"{terminal}error: {MESSAGE}\n".encode())  # stderr itself may be in use by what is interrupted
    os._exit(_INTERRUPTED)


def _set_deadline(act: Callable[[], None]) -> None:
    deadline = threading.Timer(STOP_LIMIT_S, act)
    deadline.daemon = True
    deadline.start()


@contextmanager
def hold_terminal_back() -> Iterator[None]:
    """Let processes that are started here, and by threads that are, hear a terminal no sooner than they have begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_terminal_to_run() -> None:
    """Ignore a terminal's Ctrl-C and end, which come to all its processes: the run acts on them for its workers."""
    for each in _FROM_TERMINAL:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)


def begin_worker(run: Connection) -> None:
    """Let a worker process ask as long as its run does, and end with it: `run` is a pipe whose other end the run holds.

    Once that is closed nothing more is asked, and batches end with what they have. Told to end, the process first
    writes what it still gets; a terminal's Ctrl-C or end it leaves to the run.
    """
    leave_terminal_to_run()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end_worker, daemon=True).start())
    threading.Thread(target=_end_with_run, args=(run,), daemon=True).start()


def _end_with_run(run: Connection) -> None:
    """Wait for the end of the run, then for that of its process, and end too."""
    with suppress(EOFError, OSError):
        run.recv()
    stop_sessions()
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(_INTERRUPTED)


def _end_worker() -> None:
    """Write what still comes, and end this process, whatever holds it up."""
    _set_deadline(lambda: os._exit(_INTERRUPTED))
    stop_sessions()
    os._exit(_INTERRUPTED)
