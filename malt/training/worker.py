"""The training process: `python -m malt.training.worker train JOB.json`. Trains one role, tells of it in JSON lines.

`plan JOB.json…` measures instead. It stops at a checkpoint when a signal tells it to, and when standard
input ends: whoever started it holds the other end, and loses it however it ends. Exit codes: 0 done, 2 refused,
130 stopped.
"""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from malt.config.train import Stage
from malt.errors import ConfigError, MaltError
from malt.files import make_private_folder
from malt.processes import wait_for_parent
from malt.training.base import Base, unpack
from malt.training.export import finish, read_results
from malt.training.job import FINAL, LOCK, RoleJob, lock_of_base
from malt.training.process import DONE, REFUSED, STOPPED, Tell
from malt.training.rows import Measured, find_refusal, measure_rows, spread

_stopping = threading.Event()


def main() -> int:
    """Train what a job file says, or measure what some say."""
    jobs = [RoleJob.model_validate_json(Path(path).read_bytes()) for path in sys.argv[2:]]
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup has it
            signal.signal(each, lambda *_: _stopping.set())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    tell = _open_events()
    try:
        with _hold_base(jobs[0].base):
            return _measure(jobs, tell) if sys.argv[1] == "plan" else _train_all(jobs, tell)
    except MaltError as error:
        tell({"event": "refused", "message": str(error)})
        return REFUSED


def _open_events() -> Tell:
    """Return what writes events to standard output, which is theirs alone: libraries print into the log."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, Any]) -> None:
        told.write(json.dumps(event) + "\n")
        told.flush()

    return tell


def _stop_with_parent() -> None:
    """Stop when standard input ends."""
    wait_for_parent()
    _stopping.set()


@contextmanager
def _hold_base(base: Base) -> Iterator[None]:
    """Unpack a base, and keep `malt gc` from it; a base that is no GGUF file is the user's own folder."""
    if base.gguf is None:
        yield
        return
    make_private_folder(base.folder.parent)
    with lock_of_base(base.folder).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(unpack(base))  # its age is since it was last used
        yield


@contextmanager
def _hold_lock(work: Path) -> Iterator[None]:
    """Hold a job's lock; a process that was killed has let go of it, one that still saves its checkpoint has not."""
    with (work / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _train_all(jobs: Sequence[RoleJob], tell: Tell) -> int:
    """Train one role after the other; what is refused is so before any is trained."""
    tokenizer = _load_tokenizer(jobs[0])
    found = [{stage: _accept_rows(job, stage, tokenizer) for stage in job.stages} for job in jobs]
    for job, rows in zip(jobs, found, strict=True):
        with _hold_lock(job.work):
            is_done = job.done.exists() or _train(job, rows, tokenizer, _tell_of(job, tell))
        if not is_done:
            return STOPPED
    return DONE


def _accept_rows(job: RoleJob, stage: Stage, tokenizer: Any) -> Measured:  # noqa: ANN401 - transformers is not typed
    """Return a stage's rows. Raises `ConfigError` where they cannot be trained as declared."""
    found = measure_rows(job, stage, tokenizer)
    if refusal := find_refusal(job, stage, found):
        raise ConfigError(refusal)
    return found


def _tell_of(job: RoleJob, tell: Tell) -> Tell:
    return lambda event: tell({"role": job.role, **event})


def _train(job: RoleJob, found: Mapping[Stage, Measured], tokenizer: Any, tell: Tell) -> bool:  # noqa: ANN401
    """Train a role's stages that are not done yet, and put the result together; return whether that is all done."""
    tell({"event": "begin"})
    if not _train_stages(job, found, tokenizer, tell):
        return False
    results = read_results(job)
    from malt.training.samples import sample_texts

    last = job.stages[-1]
    samples = sample_texts(job, job.work / last / FINAL, found[last].rows, tokenizer)
    finish(job, tuple(results[stage] for stage in job.stages), samples, tokenizer)
    tell({"event": "done"})
    return True


def _train_stages(job: RoleJob, found: Mapping[Stage, Measured], tokenizer: Any, tell: Tell) -> bool:  # noqa: ANN401
    """Train one stage after the other, each on what the one before made; return whether all are done."""
    from malt.training.stages import StageWork, Stopped, train_stage

    before = None
    for stage in job.stages:
        if stage not in read_results(job):
            try:
                result = train_stage(StageWork(job, stage, before, found[stage], tokenizer), tell, _stopping.is_set)
            except Stopped:
                return False
            (job.work / f"{stage}.json").write_text(result.model_dump_json())
        before = job.work / stage / FINAL
    return True


def _measure(jobs: list[RoleJob], tell: Tell) -> int:
    """Tell of each stage's rows, and of base and machine."""
    from malt.training.probe import probe

    tokenizer = _load_tokenizer(jobs[0])
    for job in jobs:
        for stage in job.stages:
            found = measure_rows(job, stage, tokenizer)
            told = {"role": job.role, "stage": stage, "trained": len(found.rows), "lost": found.lost}
            refusal = find_refusal(job, stage, found)
            tell({"event": "measured", **told, "tokens": found.tokens, "refused": refusal, **spread(found.lengths)})
    tell({"event": "facts", **probe(jobs[0])})
    return DONE


def _load_tokenizer(job: RoleJob) -> Any:  # noqa: ANN401 - transformers is not typed
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base.folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ConfigError(f"[train] base = {job.base.name!r} has no chat template; take an instruction-tuned model, or "
                          "save its tokenizer with a chat_template")  # fmt: skip
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
