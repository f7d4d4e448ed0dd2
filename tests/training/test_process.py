"""Stopping the training process from its parent, at any time."""

import signal
import subprocess
import sys

import pytest

from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import RunStopped
from malt.training.process import Stopper, run_jobs
from malt.training.run import prepare


def test_a_stopped_training_does_not_start(version: DatasetVersion, spec: TrainSpec) -> None:
    stopper, jobs = Stopper(), prepare(version, spec, Settings()).jobs
    stopper.stop()
    with pytest.raises(RunStopped):
        run_jobs("train", jobs, lambda event: pytest.fail(str(event)), stopper)
    assert not jobs[0].work.exists()


def test_a_process_added_after_the_stop_is_terminated() -> None:
    stopper = Stopper()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        stopper.stop()
        stopper.add(process)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
