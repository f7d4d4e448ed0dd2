"""Loading of a model version's adapters into a running server such as vLLM, and the check that each answers as trained.

Such servers were seen to reuse a stale cache on a reload under one name, to serve the base for an adapter that fits no
layer, and to answer with another adapter than the one named. So an adapter's name contains its digest, no name is
loaded twice, and the server's log-probabilities are compared with those recorded in training.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from malt.config.roles import PLAYERS, Role
from malt.config.secret_scan import redact
from malt.errors import ConfigError, VersionError
from malt.models.version import ADAPTER, Canary, ModelVersion

_TIMEOUT_S = 300.0
_LISTED = 20
"""Number of top tokens to request. It is more than the trainer recorded, so the same model lists all of those."""
_LEAST_NOISE, _MOST_NOISE = 0.02, 0.5
"""Floor and ceiling of the noise, in nats. Two base runs may agree by chance though bfloat16 is inexact, hence a floor;
above the ceiling the server has another base."""
_TIMES_NOISE = 2.0
"""Largest accepted difference between an adapter on the server and in training, as a multiple of the noise."""
_ADVICE = "; start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
_SHOWN = 200
_MOST_BYTES = 2**24
"""Largest accepted size of a reply, after decompression."""


class Proof(BaseModel):
    """Evidence that a loaded adapter is the trained one: largest differences of log-probabilities, in nats."""

    role: Role
    name: str
    """The adapter's name on the server: version, role and digest."""
    loaded: bool
    """False where the server had the adapter already."""
    noise: float
    """Difference between the base on the server and the base in training."""
    difference: float
    """Difference between the adapter on the server and the trained role in training."""
    effect: float
    """Difference between the trained role and the base, both in training."""


def serve_adapters(version: ModelVersion, url: str, *, folder: Path | None = None, key_env: str = "") -> list[Proof]:
    """Load a version's adapters into the server at `url` (ending in `/v1`), and check each one's answers.

    `folder` is the version's folder as the server sees it; by default the local path. Raises `ConfigError` where an
    adapter cannot be loaded or does not answer as it was trained; if this call loaded it, it is unloaded.
    """
    canaries = {role: _canaries_of(version, role) for role in PLAYERS if role in version.manifest.roles}
    with _LoraServer.at(url, key_env) as server:
        base, names = server.list_models()
        return [
            _prove(server, base, name, role, known, folder or version.path, loaded=name not in names)
            for role, known in canaries.items()
            for name in (version.adapter_name(role),)
        ]


def _canaries_of(version: ModelVersion, role: Role) -> list[Canary]:
    entry = version.role(role)
    if not any(path.startswith(f"{role}/{ADAPTER}/") for path in version.manifest.files):
        raise VersionError(
            f"{version.reference}: the {role} is a whole model, no adapter; serve {role}/model by itself"
        )
    canaries = [sample.canary for sample in entry.samples if sample.canary is not None]
    if not canaries or not all(_is_measured(known) for each in canaries for known in (each.before, each.after)):
        raise VersionError(
            f"{version.reference} has no log-probabilities of its {role} to compare with; train it again"
        )
    return canaries


def _is_measured(listed: Mapping[str, float]) -> bool:
    """Whether log-probabilities can be compared: some are listed, and all are finite."""
    return bool(listed) and all(map(isfinite, listed.values()))


def _prove(
    server: "_LoraServer", base: str, name: str, role: Role, canaries: Sequence[Canary], folder: Path, *, loaded: bool
) -> Proof:  # fmt: skip
    """Load one adapter and compare it with training; where it differs, unload what was loaded."""
    noise = _measure_noise(server, base, canaries)
    effect = max(_distance(each.after, each.before) for each in canaries)
    limit = _TIMES_NOISE * noise
    if effect <= 2 * limit:
        raise ConfigError(f"{name}: training changed log-probabilities by {effect:.3f}, too little to tell from the "
                          f"server's noise of {noise:.3f}; nothing was loaded. Train longer")  # fmt: skip
    with server.loading(name, folder / role / ADAPTER) if loaded else nullcontext():
        answers = [server.ask(name, each) for each in canaries]
        difference = max(_distance(each.after, answer) for each, answer in zip(canaries, answers, strict=True))
        if difference > limit:
            from_base = max(_distance(each.before, answer) for each, answer in zip(canaries, answers, strict=True))
            raise ConfigError(_explain(name, difference, limit, is_base=from_base <= limit))
    return Proof(role=role, name=name, loaded=loaded, noise=noise, difference=difference, effect=effect)


def _measure_noise(server: "_LoraServer", base: str, canaries: Sequence[Canary]) -> float:
    """Return the largest difference from the trainer's base, over two requests a canary; at least `_LEAST_NOISE`."""
    noise = max(_distance(each.before, server.ask(base, each)) for each in canaries for _ in range(2))
    if noise > _MOST_NOISE:
        raise ConfigError(f"{server.url}: {base!r} is not the base that the adapters were trained on: "
                          f"log-probabilities differ by {noise:.2f}; nothing was loaded. Serve that base")  # fmt: skip
    return max(noise, _LEAST_NOISE)


def _explain(name: str, difference: float, limit: float, *, is_base: bool) -> str:
    what = "the base answers in its place" if is_base else "another adapter answers, or one of other weights"
    far = f"log-probabilities are {difference:.2f} from those in training, where {limit:.2f} is noise"
    instead = "do not use it. Restart the server without it, check --max-lora-rank, and serve again"
    return f"{name}: {what}: {far}; {instead}"


def _distance(known: Mapping[str, float], listed: Mapping[str, float]) -> float:
    """Return the largest difference. An unlisted token is at most as likely as the least likely listed one."""
    least = min(listed.values())
    return max(_differ(value, listed.get(token), least) for token, value in known.items())


def _differ(known: float, listed: float | None, least: float) -> float:
    return max(0.0, known - least) if listed is None else abs(known - listed)


class _LoraServer:
    """Client of a server with OpenAI's API and vLLM's endpoints for adapters."""

    def __init__(self, url: str, client: httpx.Client, secrets: Sequence[str]) -> None:
        self.url, self._client, self._secrets = url, client, secrets

    @classmethod
    @contextmanager
    def at(cls, url: str, key_env: str) -> "Iterator[_LoraServer]":
        if key_env and key_env not in os.environ:
            raise ConfigError(f"--key-env names {key_env}, which is not set; export it")
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ConfigError("--to has a user name in it; export the key, and name its variable with --key-env")
        headers = {"Authorization": f"Bearer {os.environ[key_env]}"} if key_env else {}
        with httpx.Client(headers=headers, timeout=_TIMEOUT_S) as client:
            yield cls(url, client, (key_env,))

    def list_models(self) -> tuple[str, set[str]]:
        """Return the base model's name, and the names of all models."""
        reply = self._send("GET", "models")
        try:
            bases = [str(model["id"]) for model in reply["data"] if not model.get("parent")]
            names = {str(model["id"]) for model in reply["data"]}
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(f"{self.url}/models is no list of models; is that the address of the server?") from None
        if not bases:
            raise ConfigError(f"{self.url} lists no base model; start it with one, as `vllm serve MODEL --enable-lora`")
        return bases[0], names

    @contextmanager
    def loading(self, name: str, path: Path) -> "Iterator[None]":
        """Load an adapter from a folder that the server sees; unload it again where the body of the `with` raises."""
        self._send("POST", "load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        try:
            yield
        except BaseException:
            self._send("POST", "unload_lora_adapter", {"lora_name": name})
            raise

    def ask(self, model: str, canary: Canary) -> dict[str, float]:
        """Return the log-probabilities of the likeliest first tokens of an answer."""
        body = {"model": model, "messages": list(canary.turns), "max_tokens": 1, "temperature": 0, "logprobs": True}
        reply = self._send("POST", "chat/completions", {**body, "top_logprobs": _LISTED})
        try:
            first = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            listed = {str(each["token"]): float(each["logprob"]) for each in reversed(first)}
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            listed = {}
        if not _is_measured(listed):
            raise ConfigError(f"{self.url}: {model!r} answered without log-probabilities; the proof needs them")
        return listed

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the reply's JSON, or None where the reply is not JSON."""
        try:
            with self._client.stream(method, f"{self.url.rstrip('/')}/{path}", json=body) as response:
                content = self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"{self.url} cannot be reached ({error}); is the server up?") from error
        if not response.is_success:
            shown = redact(content.decode(errors="replace"), self._secrets)[:_SHOWN]
            raise ConfigError(f"{self.url}/{path}: {response.status_code} {shown}{_ADVICE if 'lora' in path else ''}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return None

    def _read(self, response: httpx.Response) -> bytes:
        deadline, content = time.monotonic() + _TIMEOUT_S, bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > _MOST_BYTES or time.monotonic() > deadline:
                raise ConfigError(f"{self.url}: its reply exceeds {_MOST_BYTES:,} bytes or {_TIMEOUT_S:g} seconds")
        return bytes(content)
