"""What a base and a machine are: sizes, and how fast matrices of the base's shape are multiplied. Imports torch."""

import resource
import sys
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from malt.training.job import RoleJob

_PROBE_S = 0.5
_TOKENS = 1024


def probe(job: RoleJob) -> dict[str, Any]:
    """Return what memory and time depend on; no weight is loaded."""
    from peft import get_peft_model

    from malt.training.stages import make_lora

    config = AutoConfig.from_pretrained(job.base.folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(weights.numel() for weights in model.parameters())
    if job.train.adapter == "lora":
        model = get_peft_model(model, make_lora(job, model), low_cpu_mem_usage=True)
    hidden, intermediate = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    return {
        "parameters": parameters,
        "trainable": sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
        "layers": config.num_hidden_layers,
        "hidden": hidden,
        "intermediate": intermediate,
        "device": _name_device(),
        "flops": _measure_speed(hidden, intermediate, getattr(torch, job.train.dtype)),
        "resident": 0 if torch.cuda.is_available() else _measure_memory(),
    }  # fmt: skip


def _name_device() -> str:
    """Say what would train."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _measure_speed(rows: int, columns: int, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of matrices this size."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.ones(_TOKENS, rows, dtype=dtype, device=place)
    right = torch.ones(rows, columns, dtype=dtype, device=place)
    (left @ right).sum().item()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_S:
        (left @ right)[0, 0].item()
        times += 1
    return 2 * _TOKENS * rows * columns * times / (time.perf_counter() - began)


def _measure_memory() -> int:
    """Return the bytes that this process takes before any weight is loaded."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
