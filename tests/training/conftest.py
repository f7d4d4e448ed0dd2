"""A tiny model to train: random weights in a GGUF file, with the tokenizer and chat template of the embedded model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.llm.provider import embedded
from malt.models import gguf
from malt.models.version import ModelVersion, open_model
from malt.training.run import TrainSummary, train
from tests.published import publish_questions

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 32, 2, 4, 2, 64
SIZES = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INTERMEDIATE,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.dimension_count": HIDDEN // HEADS,
}
SHAPES = {
    "attn_norm": (HIDDEN,),
    "ffn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_v": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def write_tiny(folder: Path) -> Path:
    """Write a GGUF file with 1.6 million random weights, which llama.cpp and transformers can load."""
    writer_class = pytest.importorskip("gguf", reason="the extra `train` is not installed").GGUFWriter
    place = folder / "tiny.gguf"
    reader = gguf.open_gguf(embedded.find_packaged_weights("embedded"))
    writer = writer_class(place, gguf.ARCHITECTURE)
    gguf.copy_fields(reader, writer, {"general.name": "tiny", **SIZES})
    for name, weights in random_weights(len(gguf.value_of(reader, "tokenizer.ggml.tokens"))).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def random_weights(tokens: int) -> dict[str, np.ndarray]:
    """Return the weights of a tiny Llama-like model by llama.cpp's names, the same at every call."""
    random = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        values = random.standard_normal(shape) * (0.2 if len(shape) > 1 else 0.02) + (len(shape) == 1)
        return values.astype(np.float16 if len(shape) > 1 else np.float32)

    inner = {f"blk.{n}.{part}.weight": some(*shape) for n in range(LAYERS) for part, shape in SHAPES.items()}
    return {"token_embd.weight": some(tokens, HIDDEN), "output_norm.weight": some(HIDDEN), **inner}


@pytest.fixture(scope="session")
def spec(tiny: Path) -> TrainSpec:
    return spec_for(tiny)


def spec_for(tiny: Path) -> TrainSpec:
    """Return a spec of two short stages on the tiny model, with a checkpoint at every step."""
    stage = {"batch_size": 4, "learning_rate": 0.01}
    return TrainSpec.model_validate(
        {
            "base": f"embedded/{tiny}",
            "lora": {"rank": 4, "alpha": 8},
            "sft": {"epochs": 2, **stage},
            "dpo": stage,
            "checkpoint_s": 0,
        }
    )


@pytest.fixture
def version(settings: Settings) -> DatasetVersion:
    """Version with rows for every stage except the generator's DPO, in the test's data folder."""
    return publish_sums(settings)


def publish_sums(settings: Settings) -> DatasetVersion:
    return publish_questions(["q0", "q1"], settings.datasets_dir, "sums")


class Trained(NamedTuple):
    """Inputs, result and events of a training."""

    version: DatasetVersion
    models: ModelVersion
    summary: TrainSummary
    events: list[Mapping[str, Any]]
    settings: Settings


@pytest.fixture(scope="session")
def trained(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All roles of the tiny model, trained once for tests that only read the result."""
    settings, events = Settings(data_dir=tmp_path_factory.mktemp("trained")), list[Mapping[str, Any]]()
    version = publish_sums(settings)
    summary = train(version, spec, tell=events.append, settings=settings)
    return Trained(version, open_model("sums", settings.models_dir), summary, events, settings)
