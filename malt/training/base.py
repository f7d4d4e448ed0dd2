"""What is trained: a base model by its content, as a folder that transformers loads."""

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
"""Files of a model on the Hub that are fetched: no code, no pickles."""
_LONE_DIGITS = {"smollm", "starcoder", "refact", "command-r"}
"""llama.cpp's names of tokenizers that take every digit by itself."""


class Base(NamedTuple):
    """A base model."""

    name: str
    """As the config has it."""
    sha256: str
    """Of the GGUF file, or over the files of the folder."""
    gguf: Path | None
    folder: Path
    """Where transformers finds it; made out of the GGUF file where that is not done yet."""


def find_base(name: str, bases_dir: Path) -> Base:
    """Find a base and its digest. Downloads what is on the Hub; raises `ConfigError` where there is none."""
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
    """Return the folder of a model on the Hub, fetched into its usual cache where it is not there."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigError(f"[train] base = {name!r} is neither `embedded`, a folder, nor a name on the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_NEEDED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"[train] base = {name!r} is no folder here, and not to be had from the Hub: {reason}"
                          ) from error  # fmt: skip


def unpack(base: Base) -> Path:
    """Return the folder of a base, made out of its GGUF file where it is not there yet; at once, or not at all."""
    if base.gguf is None or (base.folder / "config.json").is_file():
        return base.folder
    with staging_in(base.folder.parent) as staging:
        _write_folder(base.gguf, staging)
        sync_tree(staging)
        try:
            staging.rename(base.folder)
        except OSError:
            if not (base.folder / "config.json").is_file():  # else another process was quicker
                raise
    return base.folder


def _write_folder(path: Path, folder: Path) -> None:
    """Write a GGUF file's weights, config and tokenizer as transformers has them."""
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import LlamaConfig

    from malt.models import gguf

    reader = gguf.opened(path)
    tensors = {name: np.ascontiguousarray(weights, np.float16) for name, weights in gguf.weights_in(reader)}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    tokenizer = _read_tokenizer(path, gguf.value_of(reader, "tokenizer.ggml.pre"))
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id}
    LlamaConfig(**gguf.config_of(reader), **ids, architectures=["LlamaForCausalLM"]).save_pretrained(folder)


def _read_tokenizer(path: Path, kind: str | None) -> Any:  # noqa: ANN401 - transformers is not typed
    """Read a GGUF file's tokenizer; it pads with a token that does not also end texts."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if kind in _LONE_DIGITS:  # which transformers reads over
        alone = pre_tokenizers.Digits(individual_digits=True)
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, by_bytes])
    if tokenizer.pad_token in (None, tokenizer.eos_token) and tokenizer.unk_token not in (None, tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
