"""Who plays a role: the declared sequence of the trained roles, models, where they are served, how they sample."""

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
    """The trained ones, and the one that grades them."""

    GENERATOR = "generator"
    VERIFIER = "verifier"
    REFINER = "refiner"
    EVALUATOR = "evaluator"

    @property
    def gives_answer(self) -> bool:
        """Whether its texts end in a final answer; those of other trained roles in a verdict on the text above."""
        return any(part.role is self and part.gives_answer for part in TRAJECTORY)


class Part(NamedTuple):
    """What one trained role does in a trajectory."""

    role: Role
    does: str
    text: str
    """What one of its texts is called."""
    writes: str
    """Prompt slot under which all later roles see its text."""
    gives_answer: bool = True


TRAJECTORY = (
    Part(Role.GENERATOR, "Answers the question.", "generation", writes="solution"),
    Part(Role.VERIFIER, "Criticises an answer.", "critique", writes="verification", gives_answer=False),
    Part(Role.REFINER, "Answers again, given an answer and a critique.", "refinement", writes="refinement"),
)
"""The trained roles in the order they speak; each is asked once for every text of the one before it.

All else follows from it: prompts, tables of the config, levels of the trees, files of a version.
"""

PLAYERS = tuple(part.role for part in TRAJECTORY)
"""The trained roles; a node at depth d of a tree is played by `PLAYERS[d - 1]`."""

if TYPE_CHECKING:
    Player = str
else:
    Player = Literal[tuple(map(str, PLAYERS))]
"""Name of a trained role, in a config."""


def slots_of(role: Role) -> tuple[str, ...]:
    """Return what a role's prompt may name. The reference answer is the evaluator's alone."""
    if role not in PLAYERS:
        return ("question", "ground_truth", "answer")
    return ("question", *(part.writes for part in TRAJECTORY[: PLAYERS.index(role)]))


def declare_roles(kind: object, field: Callable[[Part], Any]) -> Callable[[type[D]], type[D]]:
    """Give a model one more field for each trained role, named after it."""

    def extend(model: type[D]) -> type[D]:
        fields: dict[str, Any] = {part.role.value: (kind, field(part)) for part in TRAJECTORY}
        module, doc = model.__module__, model.__doc__
        return create_model(model.__name__, __base__=model, __module__=module, __doc__=doc, **fields)

    return extend


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is none
        return False
    return is_whole and text.startswith(("http://", "https://")) and text.isprintable() and " " not in text


def _check_address(text: str) -> str:
    """Refuse what is no address: it would be tried, and tried again."""
    if not _is_address(text):
        raise ValueError(f"{text!r} is no address; write http://HOST:PORT/v1, or https://…")
    return text


Address = Annotated[str, AfterValidator(_check_address)]


class Fallback(Declared):
    """Another model, and where it is served; it samples as the role does whose fallback it is."""

    model: str = Field(min_length=1)
    """A LiteLLM name, or `embedded`."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Empty: where the role's own model is served, if both names begin with the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Empty: the role's own, where that is the role's own address too."""


def _as_fallbacks(value: object) -> object:
    """Let a fallback be written as a name alone."""
    if not isinstance(value, list | tuple):
        return value
    return [{"model": each} if isinstance(each, str) else each for each in value]


class ModelSpec(Declared):
    """A model, where it is served, and how it samples."""

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
    """Seconds one request may take once it is sent; waiting for a free place is not counted."""
    extra: Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", **schema_without_keys()})] = Field({})
    """Further parameters, passed to the provider as they are."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds the key; never the key. Empty: the provider's own, which goes to the
    provider's own address alone."""
    api_key_block: str | None = Field(None, json_schema_extra=match_name(BLOCK))
    """Name of the Prefect Secret block that holds the key, in place of `api_key_env`; read by flows alone."""
    fallbacks: Annotated[tuple[Fallback, ...], BeforeValidator(_as_fallbacks, tuple[Fallback | str, ...])] = ()
    """Models to ask, in this order, for what this one cannot be brought to answer. No part of its answers' keys."""
    weights: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of its weights, in its answers' keys in place of the name; found for model versions and GGUF files."""

    @model_validator(mode="after")
    def _key_is_in_one_place(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block both say where the key is; set one of them")
        return self

    @property
    def backups(self) -> "tuple[ModelSpec, ...]":
        """The fallbacks as models of their own."""
        return tuple(self._backup(fallback) for fallback in self.fallbacks)

    def _backup(self, fallback: Fallback) -> "ModelSpec":
        own = {**fallback.model_dump(exclude_none=True), "weights": None, "fallbacks": ()}
        return self.model_copy(update={**dict.fromkeys(ADDRESS), **inherit(dict(self), own)})

    @property
    def identity(self) -> str:
        """What its answers' keys know it by: the digest of its weights, else its name."""
        return self.model if self.weights is None else f"sha256:{self.weights}"

    @property
    def sampling(self) -> dict[str, JsonValue]:
        """What shapes the text beside model and messages; part of every completion's key. Unset values are left out."""
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
"""Where a model is served, and the key for it."""


def inherit(shared: Mapping[str, Any], own: Mapping[str, Any], place: tuple[str, ...] = ADDRESS) -> dict[str, Any]:
    """Return what a model says with what it leaves to `shared`; a key goes to no address but its own.

    Nothing of `place` is left to it by a model with an address of its own, or of another provider.
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
    """Branching: how many times this role answers each of its parents."""


@declare_roles(RoleSpec, lambda part: Field(default_factory=RoleSpec, description=part.does))
class Roles(Declared):
    """Who plays the trained roles."""

    if TYPE_CHECKING:

        def __init__(self, **players: RoleSpec) -> None: ...
        def __getattr__(self, role: str) -> RoleSpec: ...

    def __getitem__(self, role: Role) -> RoleSpec:
        spec: RoleSpec = getattr(self, role.value)
        return spec

    def changed(self, change: Callable[[Role, RoleSpec], RoleSpec]) -> "Roles":
        """Return these with every role as `change` returns it."""
        return Roles(**{role.value: change(role, self[role]) for role in PLAYERS})

    @property
    def branching(self) -> tuple[int, ...]:
        """Children per node at each level: generations, critiques of each, refinements of each critique."""
        return tuple(self[role].samples for role in PLAYERS)
