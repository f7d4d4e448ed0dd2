"""Roles and their models: the sequence of the trained roles, model names, addresses, keys and sampling."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    WithJsonSchema,
    create_model,
    model_validator,
)

from malt.config.base import Declared
from malt.config.secret_scan import BLOCK, VARIABLE, address_without_keys, match_name, schema_without_keys

D = TypeVar("D", bound=Declared)


class Role(StrEnum):
    """The three trained roles, and the evaluator that grades them."""

    GENERATOR = "generator"
    VERIFIER = "verifier"
    REFINER = "refiner"
    EVALUATOR = "evaluator"

    @property
    def gives_answer(self) -> bool:
        """Whether the role's texts end in a final answer; those of other trained roles end in a verdict."""
        return any(part.role is self and part.gives_answer for part in TRAJECTORY)


class Part(NamedTuple):
    """One trained role's step in a trajectory."""

    role: Role
    does: str
    text: str
    """Noun for one text of this role."""
    writes: str
    """Prompt slot in which later roles see this role's text."""
    gives_answer: bool = True


TRAJECTORY = (
    Part(Role.GENERATOR, "Answers the question.", "generation", writes="solution"),
    Part(Role.VERIFIER, "Criticises an answer.", "critique", writes="verification", gives_answer=False),
    Part(Role.REFINER, "Answers again, given an answer and a critique.", "refinement", writes="refinement"),
)
"""The trained roles in order; each is asked about every text of the role before it.

Prompts, config tables, tree levels and a version's files are all derived from this sequence.
"""

PLAYERS = tuple(part.role for part in TRAJECTORY)
"""The trained roles; a node at depth d of a tree is played by `PLAYERS[d - 1]`."""

if TYPE_CHECKING:
    Player = str
else:
    Player = Literal[tuple(map(str, PLAYERS))]
"""Name of a trained role in a config."""


def slots_of(role: Role) -> tuple[str, ...]:
    """Return the slots that a role's prompt may use. Only the evaluator sees the reference answer."""
    if role not in PLAYERS:
        return ("question", "ground_truth", "answer")
    return ("question", *(part.writes for part in TRAJECTORY[: PLAYERS.index(role)]))


def declare_roles(kind: object, field: Callable[[Part], Any]) -> Callable[[type[D]], type[D]]:
    """Return a decorator that adds a field for each trained role to a model, named after the role."""

    def extend(model: type[D]) -> type[D]:
        fields: dict[str, Any] = {part.role.value: (kind, field(part)) for part in TRAJECTORY}
        module, doc = model.__module__, model.__doc__
        return create_model(model.__name__, __base__=model, __module__=module, __doc__=doc, **fields)

    return extend


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # malformed IPv6 address or port
        return False
    return is_whole and text.startswith(("http://", "https://")) and text.isprintable() and " " not in text


def _check_address(text: str) -> str:
    """Refuse a malformed address early: requests to it would be retried."""
    if not _is_address(text):
        raise ValueError(f"{text!r} is no address; write http://HOST:PORT/v1, or https://…")
    return text


Address = Annotated[str, AfterValidator(_check_address)]


class Fallback(Declared):
    """Fallback model and its address; it samples as its role does."""

    model: str = Field(min_length=1)
    """Name of the model: a LiteLLM name, or `embedded`."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Address of the model's server; empty: that of the role's own model, if both are of the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds its key; empty: the role's, if the address is the role's too."""


def _as_fallbacks(value: object) -> object:
    """Accept a fallback that is written as a name alone."""
    if not isinstance(value, list | tuple):
        return value
    return [{"model": each} if isinstance(each, str) else each for each in value]


class ModelSpec(Declared):
    """A model, its address and key, and its sampling."""

    first: ClassVar[tuple[str, ...]] = ("model", "temperature", "max_tokens")

    model: str = Field("embedded", min_length=1)
    """`embedded`, a model version (NAME@v2), or a LiteLLM name: openai/…, groq/…, ollama_chat/…, hosted_vllm/…"""
    temperature: float | None = Field(0.3, ge=0, le=2)
    """Sampling temperature; empty: the provider's default."""
    max_tokens: int | None = Field(1024, ge=1)
    """Longest completion in tokens; one that reaches it is truncated."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling; empty: the provider's default."""
    seed: int | None = None
    """Base seed; every request derives its own from it. Empty: none is sent."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds that one request may take once it is sent; time in the queue is not counted."""
    extra: Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", **schema_without_keys()})] = Field({})
    """Further request parameters, passed to the provider unchanged."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds the key, never the key itself. Empty: the provider's usual variable,
    whose key is sent to the provider's own address only."""
    api_key_block: str | None = Field(None, json_schema_extra=match_name(BLOCK))
    """Name of the Prefect Secret block that holds the key, in place of `api_key_env`; works only in Prefect flows."""
    fallbacks: Annotated[tuple[Fallback, ...], BeforeValidator(_as_fallbacks, tuple[Fallback | str, ...])] = ()
    """Models to ask, in this order, for requests that this one fails to answer. Not part of its answers' keys."""
    weights: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the model's weights, which replaces its name in keys; set by MALT for model versions and GGUF files."""

    @model_validator(mode="after")
    def _key_is_in_one_place(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block both say where the key is; set one of them")
        return self

    @property
    def backups(self) -> "tuple[ModelSpec, ...]":
        """The fallbacks as complete model specs."""
        return tuple(self._backup(fallback) for fallback in self.fallbacks)

    def _backup(self, fallback: Fallback) -> "ModelSpec":
        own = {**fallback.model_dump(exclude_none=True), "weights": None, "fallbacks": ()}
        return self.model_copy(update={**dict.fromkeys(ADDRESS), **inherit(dict(self), own)})

    @property
    def identity(self) -> str:
        """Identity of the model in its answers' keys: the digest of its weights, else its name."""
        return self.model if self.weights is None else f"sha256:{self.weights}"

    @property
    def sampling(self) -> dict[str, JsonValue]:
        """Sampling parameters, which are part of every completion's key. Unset values are left out."""
        values: dict[str, JsonValue] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "seed": self.seed,
            "extra": self.extra or None,
        }
        return {name: value for name, value in values.items() if value is not None}


M = TypeVar("M", bound=ModelSpec)


ADDRESS = ("api_base", "api_key_env", "api_key_block")
"""Keys of a config that say where a model is served and where its API key is."""


def inherit(shared: Mapping[str, Any], own: Mapping[str, Any], place: tuple[str, ...] = ADDRESS) -> dict[str, Any]:
    """Return `own` with `shared` as defaults; an API key is never sent to another address than its own.

    A model with its own address, or of another provider, inherits no key of `place`.
    """
    name = str(shared.get("model", "embedded"))
    has_address = own.get("api_base", shared.get("api_base")) != shared.get("api_base")
    if has_address or _provider_in(str(own.get("model") or name)) != _provider_in(name):
        left_out = place
    else:
        left_out = ADDRESS[1:] if any(key in own for key in ADDRESS[1:]) else ()
    return {**{name: value for name, value in shared.items() if name not in left_out}, **own}


def _provider_in(model: str) -> str:
    return model.partition("/")[0]


class RoleSpec(ModelSpec):
    """One trained role."""

    first: ClassVar[tuple[str, ...]] = ("model", "samples", "temperature", "max_tokens")

    samples: int = Field(3, ge=1, le=64)
    """Branching factor: number of texts that this role writes for each parent node."""


@declare_roles(RoleSpec, lambda part: Field(default_factory=RoleSpec, description=part.does))
class Roles(Declared):
    """Models of the trained roles."""

    if TYPE_CHECKING:

        def __init__(self, **players: RoleSpec) -> None: ...
        def __getattr__(self, role: str) -> RoleSpec: ...

    def __getitem__(self, role: Role) -> RoleSpec:
        spec: RoleSpec = getattr(self, role.value)
        return spec

    def changed(self, change: Callable[[Role, RoleSpec], RoleSpec]) -> "Roles":
        """Return a copy with `change` applied to every role."""
        return Roles(**{role.value: change(role, self[role]) for role in PLAYERS})

    @property
    def branching(self) -> tuple[int, ...]:
        """Children per node at each level: generations, critiques of each, refinements of each critique."""
        return tuple(self[role].samples for role in PLAYERS)
