"""Resolution of model names in a config to digests of weights, which become part of the requests' keys."""

import re
from pathlib import Path
from typing import TypeVar

from malt.canonical_json import cached_sha256
from malt.config.roles import Role, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, RunSpec
from malt.errors import ConfigError, VersionError, named_place
from malt.llm.provider import embedded
from malt.models.version import ModelVersion, open_model

M = TypeVar("M", RoleSpec, EvaluatorSpec)

NAMED = re.compile(
    r"(?P<version>(models/)?[a-z0-9-]{1,100}@(v?[1-9][0-9]*|latest))(/(?P<role>generator|verifier|refiner))?"
)
"""Name of a model version, optionally with the role whose weights to take; by default the role that it plays."""


def with_weights(spec: RunSpec, settings: Settings | None = None) -> RunSpec:
    """Return the spec with the digest of weights of every model version and GGUF file filled in.

    Raises `ConfigError` where one is missing, or has other weights than the spec already names.
    """
    place = (settings or Settings()).models_dir

    def fill(role: Role, model: M) -> M:
        with named_place(spec.key_of(role)):
            return _fill_weights(model, role, place)

    roles = spec.roles.changed(fill)
    judge = fill(Role.EVALUATOR, spec.evaluator) if "llm" in spec.evaluator.kind else spec.evaluator
    if (roles, judge) == (spec.roles, spec.evaluator):
        return spec
    return spec.model_copy(update={"roles": roles, "evaluator": judge})


def _fill_weights(model: M, role: Role, models_dir: Path) -> M:
    fallbacks = tuple(
        each.model_copy(update={"model": identify(each.model, role, models_dir)[0]}) for each in model.fallbacks
    )
    name, weights = identify(model.model, role, models_dir)
    if model.weights and weights and weights != model.weights:
        raise ConfigError(f"model {model.model!r} is another one now: its weights are {weights[:12]}…, and were "
                          f"{model.weights[:12]}…")  # fmt: skip
    if (name, weights or model.weights, fallbacks) == (model.model, model.weights, model.fallbacks):
        return model
    return model.model_copy(update={"model": name, "weights": weights or model.weights, "fallbacks": fallbacks})


def identify(model: str, role: Role, models_dir: Path) -> tuple[str, str | None]:
    """Return a model's full name, and the digest of its weights where they are local."""
    named = NAMED.fullmatch(model)
    if named is not None:
        whose = Role(named["role"] or role)
        version = _open_version(model, named["version"], models_dir)
        return f"{version.played_as}/{whose}", _weights_of(version, whose, model)
    if model.startswith(f"{embedded.NAME}/"):
        source = embedded.locate_weights(model)
        if isinstance(source, Path) and source.is_file():
            return model, cached_sha256(source)
    return model, None


def _open_version(model: str, reference: str, models_dir: Path) -> ModelVersion:
    try:
        return open_model(reference, models_dir)
    except VersionError as error:
        raise ConfigError(f"model {model!r}: {error}") from error


def _weights_of(version: ModelVersion, role: Role, model: str) -> str:
    """Return the digest of a role's GGUF file. Raises `ConfigError` where the file is missing or changed."""
    if role is Role.EVALUATOR:
        raise ConfigError(f"model {model!r}: a judge is not a trained role; name the role whose weights it uses, as in "
                          f"{version.played_as}/generator")  # fmt: skip
    try:
        path, weights = version.weights(role), version.role(role).gguf_sha256
    except VersionError as error:
        raise ConfigError(f"model {model!r}: {error}") from error
    if not path.is_file() or cached_sha256(path) != weights:
        raise ConfigError(f"model {model!r}: {path} is not the file that was published; train again, or copy it back")
    return weights
