"""EvaluateSpec: the systems that `malt evaluate` compares, and the questions; ImproveSpec: rounds of `malt improve`.

Neither is part of a dataset's identity, nor of any request's key.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from malt.config.base import Declared
from malt.config.questions import QuestionSource
from malt.config.roles import ADDRESS, PLAYERS, Address, Player, RoleSpec, declare_roles, inherit
from malt.config.secret_scan import VARIABLE, address_without_keys, match_name

Measure = Literal["sa", "sa_mv", "ma", "ma_mv"]
"""Answer of a system that is counted: the generator's (`sa`) or the chain's (`ma`), single or by vote (`_mv`)."""


class PlayerSpec(Declared):
    """Model that plays a role in one system; values set here override those of the config's role."""

    model: str | None = Field(None, min_length=1)
    """Model in place of the role's; `models/NAME@v3` or `NAME@v3` is a model version."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature in place of the role's."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest completion in tokens, in place of the role's."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling (top-p) in place of the role's."""
    seed: int | None = None
    """Base seed in place of the role's."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Address of the model's server; empty: that of the role's own model, if both are of the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds its key; empty: the role's, if the address is the role's too."""

    def plays(self, role: RoleSpec) -> RoleSpec:
        """Return the role with this player's values; a key is never sent to another address than its own."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        own |= {} if self.model is None else {"weights": None}
        nowhere: dict[str, object] = {**dict.fromkeys(ADDRESS), "extra": {}, "fallbacks": ()}
        return role.model_copy(update={**nowhere, **inherit(dict(role), own, tuple(nowhere))})


@declare_roles(PlayerSpec | None, lambda part: Field(None, description=part.does))
class _CastRoles(Declared):
    models: str | None = Field(None, min_length=1)
    """Model version, `NAME@v3`, that plays every role it was trained for."""


class SystemSpec(_CastRoles):
    """Players of one compared system; a role left empty is played as the config declares."""

    roles: tuple[Player, ...] = PLAYERS
    """Roles that take part. Without a verifier the refiner sees an empty critique. Without a refiner the answer is the
    one that the verifier states, else the generator's."""

    @field_validator("roles")
    @classmethod
    def _someone_answers(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if PLAYERS[0] not in roles or len(set(roles)) < len(roles):
            raise ValueError(f"the {PLAYERS[0]} always takes part, and every role once: such as [generator, refiner]")
        return roles


def _paper_systems(trained: str | None) -> dict[str, SystemSpec]:
    """Return the systems of the paper's tables: untrained, STaR and MALT, each role untrained, and roles left out."""
    first, *others = PLAYERS
    parts = {"G": (first,)} | {f"G+{role[0].upper()}": (first, role) for role in others}
    left_out = {name: SystemSpec(models=trained, roles=roles) for name, roles in parts.items()}
    whole = SystemSpec(models=trained)
    if trained is None:
        return {"G+V+R": whole, **left_out}
    cast = dict.fromkeys(PLAYERS, PlayerSpec(model=trained))
    untrained = {f"{role}-untrained": SystemSpec(**{**cast, role: None}) for role in PLAYERS}
    return {
        "untrained": SystemSpec(),
        "star": SystemSpec(**{first: cast[first]}),
        "malt": whole,
        **untrained,
        **left_out,
    }


@declare_roles(tuple[PlayerSpec, ...], lambda part: Field((), description=part.does))
class TournamentSpec(Declared):
    """Models for each role; every combination is a system. A role without a list is played as the config declares."""

    @field_validator("*", mode="before")
    @classmethod
    def _names_alone(cls, players: object) -> object:
        """Let a player be written as a name alone."""
        if not isinstance(players, list):
            return players
        return [{"model": one} if isinstance(one, str) else one for one in players]


class EvaluateSpec(Declared):
    """Systems to compare on held-out questions. Changes no dataset and no request of a run."""

    questions: QuestionSource | None = None
    """Held-out questions; empty: the validation split, whose share `dataset.validation` sets."""
    overlap: Literal["refuse", "keep"] = "refuse"
    """Held-out questions nearly equal to one of `[questions]` or of a model's training data: refuse, or keep them."""
    chains: int = Field(3, ge=1, le=64)
    """Number of independent chains (generator, verifier, refiner) per question: the k votes of MV@k."""
    seeds: tuple[int, ...] = ()
    """Seeds of repeated measurements: each replaces the roles' own seeds and asks for new answers."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Temperature of a control, such as 0: it adds one chain per question and seed. Empty: no control."""
    equal_tokens: bool = False
    """Add a baseline of equal cost: the generator alone votes until it has written as many tokens as the pipeline."""
    measure: Measure = "ma_mv"
    """Main measure of differences to the baseline: accuracy of the generator's answer (`sa`) or the chain's (`ma`),
    single or by vote (`_mv`)."""
    baseline: str | None = None
    """System that the others are compared with; empty: the first."""
    models: str | None = Field(None, min_length=1)
    """Model version of the trained roles for `systems = "paper"`; the untrained roles are the config's."""
    systems: dict[str, SystemSpec] = Field({})
    """Systems to compare, by name; `"paper"`: those of the paper's tables, with `models` as the trained roles."""
    tournament: TournamentSpec | None = None
    """Models for each role; every combination of them is one more system."""
    race: bool = False
    """Ask questions in growing rounds and drop systems that cannot win; the best is dropped in at most 5 % of races."""

    @model_validator(mode="before")
    @classmethod
    def _paper_names_its_systems(cls, values: object) -> object:
        if isinstance(values, Mapping) and values.get("systems") == "paper":
            return {"equal_tokens": True, **values, "systems": _paper_systems(values.get("models"))}
        return values

    @model_validator(mode="after")
    def _names_can_be_told_apart(self) -> Self:
        for name in self.systems:
            if not re.fullmatch(r"[\w.+-]{1,60}", name):
                raise ValueError(f"system {name!r}: a name has letters, digits and . _ + - only")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds name one twice; each repeat needs a seed of its own")
        return self


Threshold = Annotated[float, Field(ge=0, lt=1)]


class ImproveSpec(Declared):
    """Rounds of growing, training and evaluating; trained roles play the next round only if they are better."""

    rounds: int = Field(2, ge=1, le=100)
    """Number of rounds; may be raised later to continue."""
    rows: Literal["all", "last"] = "all"
    """Rows that a round trains on: those of all rounds so far, or its own. Each round starts from [train] base."""
    thresholds: tuple[Threshold, ...] = ()
    """Values of credit.threshold, one per round; the last one holds for all further rounds."""
    measure: Measure | None = None
    """Measure that decides whether trained roles are kept: `sa`, `ma` or a vote (`_mv`); empty: evaluate.measure."""
    margin: float = Field(0.0, ge=0, lt=1)
    """Trained roles are kept if the lower bound of their gain, paired by question, is above this; 0.02: two points."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Confidence level of the interval whose lower bound decides."""
    on_no_gain: Literal["stop", "continue"] = "stop"
    """After a round whose roles are not kept: stop, or continue with the best roles so far and new seeds."""
    closing: bool = True
    """At the end, evaluate the trained roles as [evaluate] says, and again with each single role untrained."""
    beside: dict[str, QuestionSource] = Field({})
    """Further question files, by name, to compare untrained and trained roles on at the end; they decide nothing."""

    @model_validator(mode="after")
    def _names_are_parts_of_names(self) -> Self:
        for name in self.beside:
            if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
                raise ValueError(f"beside.{name}: a name has lower-case letters, digits and hyphens")
        return self
