"""GGUF files of Llama-like models: reading their weights for transformers, and writing trained weights back.

llama.cpp stores the rows of the query and key matrices in another order; otherwise only the names differ.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from malt.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFReader

Weights = NDArray[np.float32]
Change = Callable[[str, Weights], Weights]
"""Function from a weight's name in transformers and its value to its trained value."""

ARCHITECTURE = "llama"
_F16_FILE = 1
"""Value of `general.file_type` where all matrices are F16."""
_HEAD_COUNTS = {".attn_q.weight": "head_count", ".attn_k.weight": "head_count_kv"}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(?P<layer>[0-9]+)\.(?P<part>\w+)\.weight")
_COUNTED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
"""Fields that the reader adds to those of the file."""


def open_gguf(path: Path) -> "GGUFReader":
    """Open a GGUF file. Raises `ConfigError` for a model that is not Llama-like, or no GGUF file at all."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise ConfigError(f"{path} is not a GGUF file that can be read: {error}") from error
    kind = value_of(reader, "general.architecture")
    if kind != ARCHITECTURE:
        raise ConfigError(f"{path} is a model of kind {kind!r}; only {ARCHITECTURE!r} is taken from GGUF files. "
                          "Name a folder or a model on the Hub as [train] base")  # fmt: skip
    return reader


def value_of(reader: "GGUFReader", name: str, default: Any = None) -> Any:  # noqa: ANN401 - a field may be anything
    field = reader.get_field(name)
    return default if field is None else field.contents()


def _name_in_transformers(name: str) -> str:
    """Return transformers' name of a tensor. Raises `ConfigError` for a tensor that no Llama-like model has."""
    if name in _OUTER:
        return _OUTER[name]
    block = _BLOCK.fullmatch(name)
    if block is None or block["part"] not in _INNER:
        raise ConfigError(f"the GGUF file has a tensor {name!r}, which no Llama-like model has")
    return f"model.layers.{block['layer']}.{_INNER[block['part']]}.weight"


def weights_in(reader: "GGUFReader") -> Iterator[tuple[str, Weights]]:
    """Yield every weight with transformers' name and order of rows, as 32-bit floats."""
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        weights = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        yield _name_in_transformers(tensor.name), _permute(weights, _count_heads(reader, tensor.name), back=True)


def _count_heads(reader: "GGUFReader", name: str) -> int:
    """Return the number of heads in a tensor that llama.cpp reorders; 0 for a tensor in transformers' order."""
    key = next((key for end, key in _HEAD_COUNTS.items() if name.endswith(end)), None)
    return int(value_of(reader, f"{ARCHITECTURE}.attention.{key}")) if key else 0


def _permute(weights: Weights, heads: int, *, back: bool = False) -> Weights:
    """Reorder each head's rows to llama.cpp's order, rotary pairs side by side; or `back`, all first halves first."""
    if not heads:
        return weights
    rows, columns = weights.shape
    pairs = rows // heads // 2
    halves = (pairs, 2) if back else (2, pairs)
    return weights.reshape(heads, *halves, columns).swapaxes(1, 2).reshape(rows, columns)


def config_of(reader: "GGUFReader") -> Mapping[str, Any]:
    """Return the arguments of transformers' `LlamaConfig`."""

    def own(name: str, default: Any = None) -> Any:  # noqa: ANN401
        return value_of(reader, f"{ARCHITECTURE}.{name}", default)

    heads = own("attention.head_count")
    return {
        "vocab_size": len(value_of(reader, "tokenizer.ggml.tokens")),
        "hidden_size": own("embedding_length"),
        "intermediate_size": own("feed_forward_length"),
        "num_hidden_layers": own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own("attention.head_count_kv", heads),
        "max_position_embeddings": own("context_length"),
        "rms_norm_eps": own("attention.layer_norm_rms_epsilon"),
        "rope_theta": own("rope.freq_base", 10_000.0),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": value_of(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": value_of(reader, "tokenizer.ggml.eos_token_id"),
    }


def write_trained(base: Path, place: Path, change: Change, name: str) -> None:
    """Write a copy of the GGUF file `base` to `place`, its weights passed through `change` and its matrices in F16."""
    from gguf import GGMLQuantizationType, GGUFWriter

    reader = open_gguf(base)
    writer = GGUFWriter(place, ARCHITECTURE)
    copy_fields(reader, writer, {"general.name": name, "general.file_type": _F16_FILE})
    names = {_name_in_transformers(tensor.name): tensor.name for tensor in reader.tensors}
    heads = {known: (own, _count_heads(reader, own)) for known, own in names.items()}
    for known, weights in weights_in(reader):
        own, shared = heads[known]
        changed = _permute(change(known, weights), shared)
        is_matrix = changed.ndim > 1
        kind = GGMLQuantizationType.F16 if is_matrix else GGMLQuantizationType.F32
        writer.add_tensor(own, np.ascontiguousarray(changed, np.float16 if is_matrix else np.float32), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_fields(reader: "GGUFReader", writer: Any, own: Mapping[str, Any]) -> None:  # noqa: ANN401 - gguf's writer is not typed
    """Copy a file's metadata (tokenizer, chat template, sizes); values in `own` replace those of the file."""
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name in _COUNTED or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, own.get(field.name, field.contents()), kind, sub_type=inner)
