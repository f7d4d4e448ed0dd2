"""What base and trained role say to prompts of the training rows: sample texts and first tokens. Imports torch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from malt.models.manifest import Canary, Sample
from malt.training.job import RoleJob

_PROMPTS = 2
_TOKENS = 48
"""Of a text; longer ones are cut."""
_LIKELIEST = 5
"""First tokens whose log-probabilities are kept."""


def sample_texts(job: RoleJob, trained: Path, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> tuple[Sample, ...]:  # noqa: ANN401 - transformers is not typed
    """Ask base and trained role for the first prompts that differ."""
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
    """Return a greedy text, and the likeliest first tokens with their log-probabilities."""
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    asked = asked.to(model.device)
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        first = torch.log_softmax(model(**asked).logits[0, -1].float(), -1).topk(_LIKELIEST)
    likely = {tokenizer.decode([token]): value for value, token in zip(*map(torch.Tensor.tolist, first), strict=True)}
    return tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip(), likely
