"""Playing a trained role from its weights, by which it is identified."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.llm.provider import embedded
from malt.models.version import ModelVersion, open_model
from malt.training.base import find_base, unpack
from malt.training.run import train
from tests.training.conftest import publish_sums

pytest.importorskip("trl", reason="the extra `train` is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUESTIONS = [
    f"{start} {number} {thing} and buys {number + 3} more. How many are there?"
    for start in ("Ann has", "A shop has", "Tom counts", "There are")
    for number, thing in ((3, "pens"), (12, "red apples"), (250, "stamps"), (7, "cats"), (48, "books"))
]
"""Twenty questions."""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """Version of the embedded model, trained a few steps as a generator."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("trained"))
    stage = {"learning_rate": 0.002, "epochs": 3, "batch_size": 4}
    spec = TrainSpec.model_validate({"verifier": [], "refiner": [], "lora": {"layers": 8}, "sft": stage})
    train(publish_sums(settings), spec, settings=settings)
    return open_model("sums", settings.models_dir)


def ask(address: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Ask the embedded server at temperature 0; return the choice with its log-probabilities."""
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": tokens}
    request = urllib.request.Request(
        f"{address}/chat/completions",
        json.dumps({**body, "logprobs": True, "top_logprobs": 5}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {embedded.KEY}"},
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        choice: dict[str, Any] = json.load(reply)["choices"][0]
    return choice


def test_torch_and_the_embedded_server_give_the_same_answers_of_a_trained_role(
    generator: ModelVersion, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # more would compete with the embedded server's threads
    folder = unpack(find_base("embedded", tmp_path))
    adapter = generator.path / Role.GENERATOR / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter)
    address = embedded.start_endpoint(f"embedded/{generator.weights(Role.GENERATOR)}")
    texts, differences = list[tuple[str, str]](), list[float]()
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            first = torch.log_softmax(model(**asked).logits[0, -1].float(), -1)
            said = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
        choice = ask(address, question, 16)
        texts.append((tokenizer.decode(said, skip_special_tokens=True), choice["message"]["content"]))
        likely = choice["logprobs"]["content"][0]["top_logprobs"]
        differences += [abs(told["logprob"] - first[told["id"]].item()) for told in likely]
    assert [one for one, _ in texts] == [other for _, other in texts]
    assert max(differences) < 0.05
