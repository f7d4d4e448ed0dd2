"""A stand-in for vLLM's server with adapters: the same API on loopback, computed by transformers and PEFT.

`fault` repeats failures seen in real servers: `base` serves the base model for every adapter, `first` serves the first
loaded adapter for all, `other` has another base model, `refuses` loads no adapter, `mute` omits log-probabilities.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving import Served

BASE = "org/base"


class LoraServer(Served):
    """The server; `loaded` and `loads` may be read while it runs."""

    def __init__(self, base: Path, fault: str = "") -> None:
        self.fault, self._tokenizer = fault, AutoTokenizer.from_pretrained(base)
        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
        if fault == "other":
            torch.manual_seed(1)
            for weight in self._model.parameters():
                weight.data += 0.1 * torch.randn_like(weight)
        self.loaded: list[str] = []
        self.loads: list[dict[str, str]] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._list),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
                web.post("/v1/chat/completions", self._answer),
            ]
        )
        return app

    async def _list(self, _: web.Request) -> web.Response:
        adapters = [{"id": name, "parent": BASE} for name in self.loaded]
        return web.json_response({"object": "list", "data": [{"id": BASE, "parent": None}, *adapters]})

    async def _load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if self.fault == "refuses" or asked["lora_name"] in self.loaded:
            return web.json_response({"error": {"message": "The lora adapter cannot be loaded."}}, status=400)
        if isinstance(self._model, PeftModel):
            self._model.load_adapter(asked["lora_path"], asked["lora_name"])
        else:
            self._model = PeftModel.from_pretrained(self._model, asked["lora_path"], asked["lora_name"]).eval()
        self.loads.append(asked)
        self.loaded.append(asked["lora_name"])
        return web.Response(text="Success: LoRA adapter added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        self.loaded.remove((await request.json())["lora_name"])
        return web.Response(text="Success: LoRA adapter removed successfully.")

    async def _answer(self, request: web.Request) -> web.Response:
        asked = await request.json()
        prompt = self._tokenizer.apply_chat_template(
            asked["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        first = torch.log_softmax(self._logits(asked["model"], prompt).float(), -1).topk(asked["top_logprobs"])
        listed = [
            {"token": self._tokenizer.decode([token]), "logprob": value}
            for value, token in zip(first.values.tolist(), first.indices.tolist(), strict=True)
        ]
        logprobs = None if self.fault == "mute" else {"content": [{**listed[0], "top_logprobs": listed}]}
        message = {"role": "assistant", "content": listed[0]["token"]}
        return web.json_response({"choices": [{"index": 0, "message": message, "logprobs": logprobs}]})

    def _logits(self, name: str, prompt: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the logits of the first token with the named adapter, or with the one that `fault` serves instead."""
        is_base = name == BASE or self.fault == "base"
        if not is_base:
            self._model.set_adapter(self.loads[0]["lora_name"] if self.fault == "first" else name)
        hidden = self._model.disable_adapter() if is_base and isinstance(self._model, PeftModel) else nullcontext()
        with torch.no_grad(), hidden:
            logits: torch.Tensor = self._model(**prompt).logits[0, -1]
        return logits
