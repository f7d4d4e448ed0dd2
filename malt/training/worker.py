"""The training process: `python -m malt.training.worker train JOB.json`. Trains one role, tells of it in JSON lines.

It stops at a checkpoint when it is told to (SIGINT, SIGTERM), and when standard input ends: whoever started it holds
the other end, and loses it however it ends. Exit codes: 0 done, 2 refused, 130 stopped.
"""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from malt.errors import MaltError
from malt.training.job import RoleJob

STOPPED = 130
stopping = threading.Event()


def main() -> int:
    """Train what a job file says."""
    job = RoleJob.model_validate_json(Path(sys.argv[2]).read_bytes())
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopping.set())
    threading.Thread(target=stop_with_parent, daemon=True).start()
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is for the log

    def tell(event: Mapping[str, Any]) -> None:
        told.write(json.dumps(event) + "\n")
        told.flush()

    try:
        with alone(job.work):
            return train(job, tell)
    except MaltError as error:
        tell({"event": "refused", "message": str(error)})
        return 2


def stop_with_parent() -> None:
    """Stop when standard input ends."""
    while os.read(0, 1024):
        pass
    stopping.set()


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold a job's lock; a process that was killed has let go of it, one that still saves its checkpoint has not."""
    with (work / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def train(job: RoleJob, tell: Any) -> int:  # noqa: ANN401 - see stages.Tell, which imports torch
    """Train the stages that are not done yet, and put the result together."""
    from malt.training.base import unpack
    from malt.training.export import finish, stage_results
    from malt.training.rows import measured, refuse_long, settings_of

    if job.done.exists():
        return 0
    tell({"event": "begin"})
    unpack(job.base)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base.folder, trust_remote_code=False)
    found = {stage: measured(job, stage, tokenizer) for stage in job.stages}
    for stage in job.stages:
        refuse_long(job.role, stage, found[stage], settings_of(job, stage))
    from malt.training.stages import FINAL, Stopped, train_stage

    results, before = stage_results(job), None
    for stage in job.stages:
        if stage not in results:
            try:
                results[stage] = train_stage(job, stage, before, found[stage], tokenizer, tell, stopping.is_set)
            except Stopped:
                return STOPPED
            (job.work / f"{stage}.json").write_text(results[stage].model_dump_json())
        before = job.work / stage / FINAL
    finish(job, tuple(results[stage] for stage in job.stages), tokenizer)
    tell({"event": "done"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
