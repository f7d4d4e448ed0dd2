"""The training process: `python -m malt.training.worker train JOB.json…` trains roles and reports events as JSON lines.

`plan JOB.json…` measures instead. The process stops at a checkpoint on a signal, and when its parent exits: the parent
holds the write end of its standard input. Exit codes: 0 done, 2 refused, 130 stopped.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from malt.canonical_json import canonical_json
from malt.config.train import Stage
from malt.datasets.version.folders import sync_tree
from malt.errors import ConfigError, MaltError
from malt.files import hold_lock, make_private_folder
from malt.models import gguf
from malt.models.version import ADAPTER, FULL, GGUF_FILE, Sample, StageResult
from malt.processes import wait_for_parent
from malt.training.base import Base, unpack
from malt.training.job import (
    FINAL,
    LOCK,
    RESULT_FILE,
    Measured,
    RoleJob,
    RoleResult,
    find_refusal,
    lock_of_base,
    measure_rows,
    spread,
)
from malt.training.process import DONE, PACKAGES, REFUSED, STOPPED, Tell

_stopping = threading.Event()


def main() -> int:
    """Train the jobs, or measure their rows."""
    jobs = [RoleJob.model_validate_json(Path(path).read_bytes()) for path in sys.argv[2:]]
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup sets it
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
    """Return a function that writes events to standard output; what libraries print there goes to the log instead."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    return tell


def _stop_with_parent() -> None:
    wait_for_parent()
    _stopping.set()


@contextmanager
def _hold_base(base: Base) -> Iterator[None]:
    """Unpack a base, and lock it against `malt gc`; a base that is no GGUF file is the user's own folder."""
    if base.gguf is None:
        yield
        return
    make_private_folder(base.folder.parent)
    with hold_lock(lock_of_base(base.folder), shared=True):
        os.utime(unpack(base))  # `malt gc` counts the time since the last use
        yield


def _train_all(jobs: Sequence[RoleJob], tell: Tell) -> int:
    """Train one role after the other; rows are refused before any role is trained."""
    tokenizer = _load_tokenizer(jobs[0])
    found = [{stage: _accept_rows(job, stage, tokenizer) for stage in job.stages} for job in jobs]
    for job, rows in zip(jobs, found, strict=True):
        with hold_lock(job.work / LOCK):  # a stopped process may still save its checkpoint
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
    """Train the stages that are not done yet, each from the weights of the one before, and write the result.

    Returns False where training was stopped.
    """
    tell({"event": "begin"})
    from malt.training.probe import sample_texts
    from malt.training.stages import StageWork, Stopped, train_stage

    results, before = [], None
    for stage in job.stages:
        file, weights = job.work / f"{stage}.json", job.work / stage / FINAL
        if file.exists() and weights.exists():
            result = StageResult.model_validate_json(file.read_bytes())
        else:
            try:
                result = train_stage(StageWork(job, stage, before, found[stage], tokenizer), tell, _stopping.is_set)
            except Stopped:
                return False
            file.write_text(result.model_dump_json())
        results.append(result)
        before = weights
    samples = sample_texts(job, weights, found[stage].rows, tokenizer)
    _finish(job, tuple(results), samples, tokenizer)
    tell({"event": "done"})
    return True


def _measure(jobs: list[RoleJob], tell: Tell) -> int:
    """Report the measured rows of each stage, and the facts about base and machine."""
    from malt.training.probe import probe

    tokenizer = _load_tokenizer(jobs[0])
    for job in jobs:
        for stage in job.stages:
            found = measure_rows(job, stage, tokenizer)
            rows = {"role": job.role, "stage": stage, "trained": len(found.rows), "lost": found.lost}
            refusal = find_refusal(job, stage, found)
            tell({"event": "measured", **rows, "tokens": found.tokens, "refused": refusal, **spread(found.lengths)})
    tell({"event": "facts", **probe(jobs[0])})
    return DONE


def _load_tokenizer(job: RoleJob) -> Any:  # noqa: ANN401 - transformers is not typed
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base.folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ConfigError(f"[train] base = {job.base.name!r} has no chat template; take an instruction-tuned model, or "
                          "save its tokenizer with a chat_template")  # fmt: skip
    return tokenizer


# The files of a trained role: its adapter with the tokenizer, and a GGUF file that the embedded server loads.

_PREFIX = "base_model.model."


def _finish(job: RoleJob, results: tuple[StageResult, ...], samples: tuple[Sample, ...], tokenizer: Any) -> None:  # noqa: ANN401
    """Write the files for the model version to the job's folder `done`, atomically."""
    staging = job.work / ".done"
    shutil.rmtree(staging, ignore_errors=True)
    trained = job.work / job.stages[-1] / FINAL
    place = staging / (ADAPTER if job.train.adapter == "lora" else FULL)
    shutil.copytree(trained, place, ignore=shutil.ignore_patterns("README.md", "training_args.bin"))
    tokenizer.save_pretrained(place)
    if job.train.adapter == "lora":
        _settle_config(place / "adapter_config.json", job.base.name)
    if job.base.gguf is not None:
        change = _merge_adapter(place) if job.train.adapter == "lora" else replace_weights(place)
        gguf.write_trained(job.base.gguf, staging / GGUF_FILE, change, f"malt {job.role}")
    libraries = {name: version(name) for name in PACKAGES}
    result = RoleResult(stages=results, samples=samples, inputs_sha256=job.inputs_sha256, libraries=libraries)
    (staging / RESULT_FILE).write_text(result.model_dump_json())
    sync_tree(staging)
    staging.rename(job.done)


def _settle_config(path: Path, base: str) -> None:
    """Normalise an adapter's config, so that it does not depend on the process or folder that wrote it."""
    config = json.loads(path.read_bytes())
    ordered = {name: sorted(value) if name == "target_modules" else value for name, value in config.items()}
    path.write_bytes(canonical_json({**ordered, "base_model_name_or_path": base, "inference_mode": True}))


def _merge_adapter(adapter: Path) -> gguf.Change:
    """Return a function that adds a LoRA adapter to the base's weights."""
    from safetensors.numpy import load_file

    config = json.loads((adapter / "adapter_config.json").read_bytes())
    scale = np.float32(config["lora_alpha"] / config["r"])
    tensors = load_file(adapter / "adapter_model.safetensors")

    def change(name: str, weights: gguf.Weights) -> gguf.Weights:
        stem = _PREFIX + name.removesuffix(".weight")
        down = tensors.get(f"{stem}.lora_A.weight")
        if down is None:
            return weights
        up = tensors[f"{stem}.lora_B.weight"]
        added: gguf.Weights = scale * (up.astype(np.float32) @ down.astype(np.float32))
        return weights + added

    return change


def replace_weights(folder: Path) -> gguf.Change:
    """Return a function that replaces the base's weights by those of a fully trained model."""
    from safetensors import safe_open

    index = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            index.update(dict.fromkeys(file.keys(), path))

    def change(name: str, weights: gguf.Weights) -> gguf.Weights:
        if name not in index:
            return weights
        with safe_open(index[name], framework="np") as file:
            return cast("gguf.Weights", file.get_tensor(name).astype(np.float32))

    return change


if __name__ == "__main__":
    sys.exit(main())
