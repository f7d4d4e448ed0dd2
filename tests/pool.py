"""The processes that graders run in, killed."""

import os
import signal
from contextlib import suppress

from malt.grading.process_pool import worker_pids


def kill_workers() -> None:
    """Kill all that are up; those that follow know the path and the folder as they are then."""
    for pid in worker_pids():
        kill(pid)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signal.SIGKILL)
