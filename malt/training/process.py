"""The training process as its parent sees it: started, followed, stopped; never longer alive than its parent."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from malt.errors import ConfigError, RunStopped, TrainingFailed
from malt.files import make_private_folder
from malt.training.job import RoleJob

_Task = Literal["train", "plan"]
Tell = Callable[[Mapping[str, Any]], None]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "gguf")
_STOP_S = 120.0
"""Seconds a process may take to leave a checkpoint once it is told to stop."""
DONE, REFUSED, STOPPED = 0, 2, 130
_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Of the training process, unless set: all it needs is here, a GPU adds up in one order, threads that wait sleep."""
_LAST_LINES = 3
"""Of the log, that an error quotes."""
_TOLD_TO_STOP = "training was told to stop; run again to go on from its last checkpoint"


class Stopper:
    """Tells training processes to leave a checkpoint and end: those that run, and any that would begin later."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._processes = list[subprocess.Popen[bytes]]()

    @property
    def is_told(self) -> bool:
        return self._told.is_set()

    def stop(self) -> None:
        """Stop; whoever waits for a process, or in `wait`, gets `RunStopped`."""
        self._told.set()
        for process in self._processes:
            process.terminate()

    def wait(self, seconds: float = 0.0) -> None:
        """Wait a while. Raises `RunStopped` once `stop` was called."""
        if self._told.wait(seconds):
            raise RunStopped(_TOLD_TO_STOP)

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Let a process be stopped: at once, where `stop` was called while it began."""
        self._processes.append(process)
        if self.is_told:
            process.terminate()


def list_missing() -> list[str]:
    """Name the packages of the extra `train` that are not installed; nothing is imported."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Raise `ConfigError` where the extra `train` is not installed."""
    if missing := list_missing():
        raise ConfigError(f"malt train needs {', '.join(missing)}: `make train` in a clone of the project installs it")


def run_jobs(task: _Task, jobs: Sequence[RoleJob], tell: Tell, stopper: Stopper | None = None) -> None:
    """Train roles, or measure their rows, in a process of its own; training goes on from the last checkpoints.

    Raises `ConfigError` for rows that are refused, `TrainingFailed` where the process ended otherwise, and
    `RunStopped` where it was told to stop. What it had stays in the jobs' folders.
    """
    log, refusal, stopper = jobs[0].work / "log.txt", "", stopper or Stopper()
    stopper.wait()
    process = _start(task, [_write_job(job) for job in jobs], log)
    with _stop_together(process):
        stopper.add(process)
        for event in _read_events(process):
            refusal = event["message"] if event["event"] == "refused" else refusal
            tell(event)
        code = process.wait()
    if code == REFUSED and refusal:
        raise ConfigError(refusal)
    if code == STOPPED or stopper.is_told:
        raise RunStopped(_TOLD_TO_STOP)
    if code:
        raise TrainingFailed(
            f"training ended with {_describe_end(code)}; what it had is kept, run again to go on. {log} has the whole "
            f"story; it ends: {_quote_end(log)}"
        )


def _write_job(job: RoleJob) -> Path:
    make_private_folder(job.work)
    file = job.work / "job.json"
    file.write_text(job.model_dump_json())
    return file


def _start(task: _Task, files: Sequence[Path], log: Path) -> "subprocess.Popen[bytes]":
    """Start the training process; what its libraries print goes to the log."""
    command = [sys.executable, "-m", "malt.training.worker", task, *map(str, files)]
    with log.open("ab") as errors:
        return subprocess.Popen(  # noqa: S603 - this Python, and our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env={**_QUIET, **os.environ}
        )


@contextmanager
def _stop_together(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End the process when the caller is interrupted: politely, so that it leaves a checkpoint."""
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        raise
    finally:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _read_events(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """Yield what a process tells, a line at a time."""
    for line in process.stdout or ():
        with suppress(ValueError):  # cut off as it was killed
            yield json.loads(line)


def _describe_end(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _quote_end(log: Path) -> str:
    if not log.exists():
        return "(it is gone: another training of the same has ended and removed the folder)"
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-_LAST_LINES:])
