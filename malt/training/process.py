"""Control of the training process: start it, read its events, stop it. It never outlives its parent."""

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
"""Grace period in seconds in which a stopped process may save a checkpoint."""
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
"""Defaults of the training process's environment: quiet, offline, deterministic sums on a GPU, no busy waiting."""
_LAST_LINES = 3
"""Number of the log's last lines that an error quotes."""
_STOP_MESSAGE = "training was stopped; run again to resume from its last checkpoint"


class Stopper:
    """Stops training processes at a checkpoint: those that run, and any that are added later."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._processes = list[subprocess.Popen[bytes]]()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Terminate all processes; a caller in `run_jobs` or `wait` gets `RunStopped`."""
        self._stopping.set()
        for process in self._processes:
            process.terminate()

    def wait(self, seconds: float = 0.0) -> None:
        """Wait for `seconds`. Raises `RunStopped` once `stop` was called."""
        if self._stopping.wait(seconds):
            raise RunStopped(_STOP_MESSAGE)

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Register a process; terminate it at once where `stop` was called already."""
        self._processes.append(process)
        if self.is_stopping:
            process.terminate()


def list_missing() -> list[str]:
    """Return the packages of the extra `train` that are not installed, without importing any."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Raise `ConfigError` where the extra `train` is not installed."""
    if missing := list_missing():
        raise ConfigError(f"malt train needs {', '.join(missing)}: `make train` in a clone of the project installs it")


def run_jobs(task: _Task, jobs: Sequence[RoleJob], tell: Tell, stopper: Stopper | None = None) -> None:
    """Train roles, or measure their rows, in a separate process; training resumes from the last checkpoints.

    Raises `ConfigError` for rows that are refused, `RunStopped` where the process was stopped, and `TrainingFailed`
    where it failed otherwise. Checkpoints stay in the jobs' folders.
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
    if code == STOPPED or stopper.is_stopping:
        raise RunStopped(_STOP_MESSAGE)
    if code:
        raise TrainingFailed(
            f"training ended with {_describe_end(code)}; its checkpoints are kept, run again to resume. The log {log} "
            f"ends: {_quote_end(log)}"
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
    """Stop the process when the caller is interrupted, first with SIGTERM, so that it saves a checkpoint."""
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
    """Yield a process's events, one JSON line each."""
    for line in process.stdout or ():
        with suppress(ValueError):  # a line cut off when the process was killed
            yield json.loads(line)


def _describe_end(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _quote_end(log: Path) -> str:
    if not log.exists():
        return "(the log is gone: another training of the same inputs has ended and removed the folder)"
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-_LAST_LINES:])
