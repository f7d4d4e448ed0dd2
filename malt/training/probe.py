"""Measurements for plans (a base's sizes, the machine's speed), and sample answers of a trained role.

Imports torch.
"""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from malt.models.version import Canary, Sample
from malt.training.job import RoleJob

_PROBE_S = 0.5
_MATRIX_ROWS = 1024


def probe(job: RoleJob) -> dict[str, Any]:
    """Return the figures that memory and time depend on, without loading weights."""
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
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _measure_speed(rows: int, columns: int, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a matrix product of this size."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.ones(_MATRIX_ROWS, rows, dtype=dtype, device=place)
    right = torch.ones(rows, columns, dtype=dtype, device=place)
    (left @ right).sum().item()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_S:
        (left @ right)[0, 0].item()
        times += 1
    return 2 * _MATRIX_ROWS * rows * columns * times / (time.perf_counter() - began)


def _measure_memory() -> int:
    """Return the peak memory of this process in bytes, before any weight is loaded."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Answers of the base and of the trained role to prompts of the training rows.

_PROMPTS = 2
_LONGEST = 48
"""Tokens after which an answer is cut off."""
_LIKELIEST = 5
"""Number of first tokens whose log-probabilities are recorded."""


def sample_texts(job: RoleJob, trained: Path, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> tuple[Sample, ...]:  # noqa: ANN401 - transformers is not typed
    """Answer the first distinct prompts with the base and with the trained role."""
    model = _load(job.base.folder)
    if job.train.adapter == "lora":
        model = PeftModel.from_pretrained(model, trained)
    after = model if job.train.adapter == "lora" else _load(trained)
    samples = []
    for prompt in islice(_different_prompts(rows), _PROMPTS):
        with model.disable_adapter() if job.train.adapter == "lora" else nullcontext():
            before, likely_before = _answer(model, tokenizer, prompt)
        text, likely = _answer(after, tokenizer, prompt)
        canary = Canary(turns=tuple(prompt), before=likely_before, after=likely)
        samples.append(Sample(prompt=str(prompt[-1]["content"]), before=before, after=text, canary=canary))
    return tuple(samples)


def _load(folder: Path) -> Any:  # noqa: ANN401
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _different_prompts(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, str]]]:
    seen = set()
    for row in rows:
        text = row["prompt"][-1]["content"]
        if text not in seen:
            seen.add(text)
            yield row["prompt"]


def _answer(model: Any, tokenizer: Any, prompt: list[dict[str, str]]) -> tuple[str, dict[str, float]]:  # noqa: ANN401
    """Return a greedy answer, and its likeliest first tokens with their log-probabilities."""
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs = inputs.to(model.device)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        first = torch.log_softmax(model(**inputs).logits[0, -1].float(), -1).topk(_LIKELIEST)
    likely = {tokenizer.decode([token]): value for value, token in zip(*map(torch.Tensor.tolist, first), strict=True)}
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip(), likely
