"""Clean stop of a run on Ctrl-C, SIGTERM or a terminal's hangup: requests in flight may finish, no new ones start.

The work runs in a thread of its own. In the main thread Prefect would handle SIGTERM itself, and raise an exception
wherever the event loop happens to be.
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
"""Escape codes that show the cursor, which progress bars hide, and clear its line."""
STOP_LIMIT_S = 9.0
"""Seconds after a signal until the process is ended, even if the work has not stopped."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. A signal stops it, and raises `KeyboardInterrupt`; a second one ends the process."""
    running = _Running(work)
    with on_signal(running.interrupt):  # before the start: a caller may send a signal as soon as it sees output
        running.start()
        return running.result()


class _Running(Generic[T]):
    """Coroutine that runs on an event loop of its own, in a thread of its own."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work, self._interrupted = work, False
        self._stopping = threading.Thread(target=stop_sessions, daemon=True)
        self._started: Future[Callable[[], object]] = Future()
        self._outcome: Future[T] = Future()

    def start(self) -> None:
        in_context = contextvars.copy_context().run
        threading.Thread(target=in_context, args=(self._run,), name="malt-run", daemon=True).start()

    def result(self) -> T:
        """Wait for the end, with a timeout: a signal may wake another thread, but its handler runs in this one."""
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
        """Stop all sessions, cancel the work, and end the process after `STOP_LIMIT_S`; at once on a second signal."""
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
    """Call `act` on signals that end a process (under nohup not on SIGHUP). Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    before = {each: signal.signal(each, lambda *_: act()) for each in _SIGNALS if each not in ignored}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def give_up() -> None:
    """End the process at once: arrived answers are committed, and the private server ends with the process."""
    terminal = _CURSOR if os.isatty(2) else ""
    with suppress(OSError):  # the terminal is gone
        os.write(2, f"{terminal}error: {MESSAGE}\n".encode())  # the interrupted code may hold the lock of `sys.stderr`
    os._exit(_INTERRUPTED)


def _set_deadline(act: Callable[[], None]) -> None:
    deadline = threading.Timer(STOP_LIMIT_S, act)
    deadline.daemon = True
    deadline.start()


@contextmanager
def hold_terminal_back() -> Iterator[None]:
    """Block terminal signals here and in processes started meanwhile, so that Ctrl-C ends none before it is set up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_terminal_to_run() -> None:
    """Ignore a terminal's signals in a worker: they reach the run as well, which then stops its workers."""
    for each in _FROM_TERMINAL:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)


def begin_worker(run: Connection) -> None:
    """Set up a worker process that stops asking when its run stops, and ends when the run's process ends.

    `run` is a pipe whose other end the run holds: once that is closed, no further request is made, and batches return
    what they have. On SIGTERM the process first stores the answers in flight. Terminal signals are ignored.
    """
    leave_terminal_to_run()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end_worker, daemon=True).start())
    threading.Thread(target=_end_with_run, args=(run,), daemon=True).start()


def _end_with_run(run: Connection) -> None:
    """Wait until the run closes the pipe, stop asking, wait for the run's process to end, and end this one."""
    with suppress(EOFError, OSError):
        run.recv()
    stop_sessions()
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(_INTERRUPTED)


def _end_worker() -> None:
    """Store the answers in flight, then end this process, at the latest after `STOP_LIMIT_S`."""
    _set_deadline(lambda: os._exit(_INTERRUPTED))
    stop_sessions()
    os._exit(_INTERRUPTED)
