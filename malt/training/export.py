"""What a trained role leaves: its adapter with the tokenizer, and a GGUF file that the embedded server plays."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from malt.canonical_json import canonical_json
from malt.datasets.version.folders import sync_tree
from malt.models import gguf
from malt.models.manifest import ADAPTER, FULL, GGUF_FILE, Sample, StageResult
from malt.training.job import FINAL, RESULT_FILE, RoleJob, RoleResult
from malt.training.process import PACKAGES

if TYPE_CHECKING:
    from malt.config.train import Stage

_PREFIX = "base_model.model."


def read_results(job: RoleJob) -> "dict[Stage, StageResult]":
    files = {stage: job.work / f"{stage}.json" for stage in job.stages if (job.work / stage / FINAL).exists()}
    return {stage: StageResult.model_validate_json(file.read_bytes()) for stage, file in files.items() if file.exists()}


def finish(
    job: RoleJob,
    results: tuple[StageResult, ...],
    samples: tuple[Sample, ...],
    tokenizer: Any,  # noqa: ANN401
) -> None:
    """Put together what goes into the model version; at once, or not at all."""
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
    told = RoleResult(stages=results, samples=samples, inputs_sha256=job.inputs_sha256, libraries=libraries)
    (staging / RESULT_FILE).write_text(told.model_dump_json())
    sync_tree(staging)
    staging.rename(job.done)


def _settle_config(path: Path, base: str) -> None:
    """Write an adapter's config the same way whichever process and folder it comes from."""
    config = json.loads(path.read_bytes())
    ordered = {name: sorted(value) if name == "target_modules" else value for name, value in config.items()}
    path.write_bytes(canonical_json({**ordered, "base_model_name_or_path": base, "inference_mode": True}))


def _merge_adapter(adapter: Path) -> gguf.Change:
    """Return what adds a LoRA adapter to the weights it belongs to."""
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
    """Return what puts a fully trained model's weights in the place of the base's."""
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
