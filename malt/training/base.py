"""Base models: found by name, identified by content, and unpacked into a folder that transformers loads."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from malt.canonical_json import cached_sha256, digest
from malt.datasets.version.folders import staging_in, sync_tree
from malt.errors import ConfigError
from malt.llm.provider import embedded

_WEIGHTS = "model.safetensors"
_NEEDED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
          "special_tokens_map.json", "chat_template*", "vocab.json", "merges.txt", "*.model")  # fmt: skip
"""Files to fetch of a model on the Hub: no code, no pickles."""
_LONE_DIGITS = {"smollm", "starcoder", "refact", "command-r"}
"""llama.cpp's names of tokenizers that split numbers into single digits."""


class Base(NamedTuple):
    """A base model."""

    name: str
    """Name in the config."""
    sha256: str
    """Digest of the GGUF file, or over the files of the folder."""
    gguf: Path | None
    folder: Path
    """Folder that transformers loads; `unpack` makes it from the GGUF file where it is missing."""


def find_base(name: str, bases_dir: Path) -> Base:
    """Find a base, downloading one that is on the Hub, and its digest. Raises `ConfigError` where there is none."""
    if embedded.is_embedded(name):
        path = embedded.find_weights(name)
        sha256 = cached_sha256(path)
        return Base(name, sha256, path, bases_dir / sha256[:16])
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name)
    return Base(name, _digest_folder(folder), None, folder)


def _digest_folder(folder: Path) -> str:
    """Return one digest over a model's files. Raises `ConfigError` where it has no safetensors."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(f"[train] base: {folder} has no config.json with *.safetensors beside it; pickled weights "
                          "(.bin, .pt) are not read: save the model with save_pretrained first")  # fmt: skip
    files = sorted({path for pattern in _NEEDED for path in folder.glob(pattern)})
    return digest({path.name: cached_sha256(path) for path in files})


def _download(name: str) -> Path:
    """Return the folder of a model in the Hub's local cache; download the model where it is missing."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigError(f"[train] base = {name!r} is neither `embedded`, a folder, nor a name on the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_NEEDED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"[train] base = {name!r} is no local folder, and cannot be fetched from the Hub: {reason}"
                          ) from error  # fmt: skip


def unpack(base: Base) -> Path:
    """Return a base's folder; where it is missing, unpack the GGUF file into it atomically."""
    if base.gguf is None or (base.folder / "config.json").is_file():
        return base.folder
    with staging_in(base.folder.parent) as staging:
        _write_folder(base.gguf, staging)
        sync_tree(staging)
        try:
            staging.rename(base.folder)
        except OSError:
            if not (base.folder / "config.json").is_file():  # else another process unpacked it first
                raise
    return base.folder


def _write_folder(path: Path, folder: Path) -> None:
    """Write a GGUF file's weights, config and tokenizer in transformers' formats."""
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import LlamaConfig

    from malt.models import gguf

    reader = gguf.open_gguf(path)
    tensors = {name: np.ascontiguousarray(weights, np.float16) for name, weights in gguf.weights_in(reader)}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    tokenizer = _read_tokenizer(path, gguf.value_of(reader, "tokenizer.ggml.pre"))
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id}
    LlamaConfig(**gguf.config_of(reader), **ids, architectures=["LlamaForCausalLM"]).save_pretrained(folder)


def _read_tokenizer(path: Path, kind: str | None) -> Any:  # noqa: ANN401 - transformers is not typed
    """Read a GGUF file's tokenizer; where possible, pad with a token other than the end-of-text token."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if kind in _LONE_DIGITS:  # transformers ignores this field
        alone = pre_tokenizers.Digits(individual_digits=True)
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, by_bytes])
    if tokenizer.pad_token in (None, tokenizer.eos_token) and tokenizer.unk_token not in (None, tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
