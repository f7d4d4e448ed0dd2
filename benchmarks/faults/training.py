"""Prints whether training reaches the same weights after `kill -9` at random moments.

`nice python -m benchmarks.faults.training [KILLS] [SEED]`. A tiny model's refiner is trained once without a kill, then
by processes that are killed a random time after their start, with their training process; an undisturbed call finishes
it. If a process finishes before its kill, the next one starts another training. A checkpoint is written at every step
of many, so that most kills fall between two checkpoints and not into the start of the process.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.training.run import TrainSummary, train
from tests.published import PROVENANCE, mixed_tree, publish, spec_of
from tests.training.conftest import spec_for, write_tiny

TRAIN = """
import sys
from malt.config.train import TrainSpec
from malt.training.run import train
train(sys.argv[1], TrainSpec.model_validate_json(sys.argv[2]))
"""


EPOCHS = 12


def lengthen(spec: TrainSpec) -> TrainSpec:
    """Return the spec with the refiner only, and enough steps to take longer than the start of the process."""
    stages = {name: getattr(spec, name).model_copy(update={"epochs": EPOCHS}) for name in ("sft", "dpo")}
    return spec.model_copy(update={"generator": (), "verifier": (), **stages})


def kill_after(seconds: float, version: DatasetVersion, spec: TrainSpec, data: Path) -> bool:
    """Train in a process group and kill it after some time; return whether it was still running."""
    command = [sys.executable, "-c", TRAIN, str(version.path), spec.model_dump_json()]
    with subprocess.Popen(command, env={**os.environ, "MALT_DATA_DIR": str(data)}, start_new_session=True) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        was_running = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return was_running


def describe(summary: TrainSummary) -> str:
    """Describe the weights, and the number of checkpoints from which each stage resumed."""
    stages = summary.roles["refiner"].stages
    return f"{summary.content_sha256[:16]}, went on from checkpoints {[stage.checkpoints for stage in stages.values()]}"


def main() -> None:
    """Kill trainings, resume them, and compare the weights."""
    kills, seed = map(int, [*sys.argv[1:], *("10", "0")[len(sys.argv) - 1 :]])
    moments = random.Random(seed)
    with TemporaryDirectory() as folder:
        base = Path(folder)
        spec = lengthen(spec_for(write_tiny(base)))
        version = publish(map(mixed_tree, ["q0", "q1"]), spec_of("sums"), PROVENANCE, base / "rows")
        began = time.monotonic()
        at_once = train(version, spec, settings=Settings(data_dir=base / "at once"))
        took = time.monotonic() - began
        print(f"in one go: {took:.0f} s, {describe(at_once)}", flush=True)
        killed = turns = 0
        while killed < kills:
            began = time.monotonic()
            if kill_after(moments.uniform(0, took), version, spec, base / f"turn {turns}"):
                killed += 1
            else:  # it finished first, so the next one starts a new training
                took, turns = min(took, time.monotonic() - began), turns + 1
        for turn in range(turns + 1):
            gone_on = train(version, spec, settings=Settings(data_dir=base / f"turn {turn}"))
            same = "equal" if gone_on.content_sha256 == at_once.content_sha256 else "NOT EQUAL"
            print(f"{same}: {describe(gone_on)}", flush=True)
        print(f"killed {killed} times in {turns + 1} trainings")


if __name__ == "__main__":
    main()
