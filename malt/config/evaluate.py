"""EvaluateSpec: which systems `malt evaluate` compares, on which questions; ImproveSpec: how `malt improve` goes round.

Neither is part of what a dataset is, nor of any request's key.
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
"""What of a system is right: the generator's answer or the chain's, singly or by vote."""


class PlayerSpec(Declared):
    """Who plays a role in one system: what is set here takes the place of what the config declares."""

    model: str | None = Field(None, min_length=1)
    """Another model, by its name; `models/NAME@v3` or `NAME@v3` is a model version."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Another sampling temperature."""
    max_tokens: int | None = Field(None, ge=1)
    """Another longest completion."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Another nucleus sampling."""
    seed: int | None = None
    """Another base seed."""
    api_base: Address | None = Field(None, json_schema_extra=address_without_keys())
    """Where the model is served; empty: as the role's own model, if both names begin with the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds its key; empty: the role's own, where that is the place too."""

    def plays(self, role: RoleSpec) -> RoleSpec:
        """Return a role as this player plays it; a key goes to no address but its own."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        own |= {} if self.model is None else {"weights": None}
        nowhere: dict[str, object] = {**dict.fromkeys(ADDRESS), "extra": {}, "fallbacks": ()}
        return role.model_copy(update={**nowhere, **inherit(dict(role), own, tuple(nowhere))})


@declare_roles(PlayerSpec | None, lambda part: Field(None, description=part.does))
class _CastRoles(Declared):
    models: str | None = Field(None, min_length=1)
    """A model version, `NAME@v3`, that plays all roles that it has."""


class SystemSpec(_CastRoles):
    """Who plays each role in one of the systems that are compared; left empty, as the config declares."""

    roles: tuple[Player, ...] = PLAYERS
    """Who takes part. Without a verifier the refiner sees an empty critique; without a refiner the answer is the one
    that the verifier states, else the generator's."""

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
    """Systems to compare on held-out questions. Changes no dataset, and nothing that a run asks."""

    questions: QuestionSource | None = None
    """Held-out questions; empty: the validation split that `dataset.validation` sets apart."""
    overlap: Literal["refuse", "keep"] = "refuse"
    """Questions that are, nearly word for word, among those of `[questions]`, from which systems may have learnt."""
    chains: int = Field(3, ge=1, le=64)
    """Independent chains of generator, verifier and refiner a question: the votes of MV@k."""
    seeds: tuple[int, ...] = ()
    """Repeats: each seed asks anew, in place of the roles' own seeds."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Adds a control: one more chain a question and seed at this temperature, such as 0."""
    equal_tokens: bool = False
    """Adds the single agent with as many tokens: votes are added until it has written as much as the pipeline."""
    measure: Measure = "ma_mv"
    """What differences to the baseline are told of first: the generator's answer (`sa`) or the chain's (`ma`), singly
    or by vote (`_mv`)."""
    baseline: str | None = None
    """The system that the others are compared with; empty: the first."""
    models: str | None = Field(None, min_length=1)
    """For `systems = "paper"`: the model version of the trained roles; untrained are the config's own."""
    systems: dict[str, SystemSpec] = Field({})
    """Who is compared, by name; `"paper"`: the systems of the paper's tables, around `models`."""
    tournament: TournamentSpec | None = None
    """Every combination of these models is a system too."""
    race: bool = False
    """Ask more and more questions, and drop systems that cannot win any more: a best one in at most 5 % of races."""

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
    """Rounds of growing, training and evaluating; what is trained plays the next round only if it is better."""

    rounds: int = Field(2, ge=1, le=100)
    """How many rounds there are; more may follow later."""
    rows: Literal["all", "last"] = "all"
    """What a round trains on: the rows of all rounds so far, or its own. It begins with [train] base each time."""
    thresholds: tuple[Threshold, ...] = ()
    """What takes the place of credit.threshold, round by round; the last one holds for all further rounds."""
    measure: Measure | None = None
    """What decides: right answers of the generator (`sa`) or the chain (`ma`), or votes (`_mv`); empty:
    evaluate.measure."""
    margin: float = Field(0.0, ge=0, lt=1)
    """Trained roles are kept if the lower bound of their gain, paired by question, is above this; 0.02: two points."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Of the interval whose lower bound decides."""
    on_no_gain: Literal["stop", "continue"] = "stop"
    """What follows a round whose roles are not kept: the end, or another round of the best so far with other seeds."""
    closing: bool = True
    """Evaluate the trained roles once more at the end, as [evaluate] says, beside the same with each role untrained."""
    beside: dict[str, QuestionSource] = Field({})
    """Further question files, by name, on which untrained and trained roles are compared at the end; none decides."""

    @model_validator(mode="after")
    def _names_are_parts_of_names(self) -> Self:
        for name in self.beside:
            if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
                raise ValueError(f"beside.{name}: a name has lower-case letters, digits and hyphens")
        return self
