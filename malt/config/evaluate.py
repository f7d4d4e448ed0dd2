"""EvaluateSpec: which systems `malt evaluate` compares, and on which questions."""

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from malt.config.base import Declared
from malt.config.questions import QuestionSource
from malt.config.roles import RoleSpec, provider_in
from malt.config.secret_scan import (
    PASSWORD_IN_URL,
    VARIABLE,
    match_name,
    match_text,
)


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
    api_base: str | None = Field(None, json_schema_extra={"not": match_text(PASSWORD_IN_URL)})
    """Where the model is served; empty: as the role's own model, if both names begin with the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds its key; empty: the role's own, where that is the place too."""

    def plays(self, role: RoleSpec) -> RoleSpec:
        """Return a role as this player plays it; a key goes to no address but its own."""
        changed = {name: getattr(self, name) for name in self.model_fields_set}
        if self.model is not None:
            changed["weights"] = None
        is_provider_same = self.model is None or provider_in(self.model) == provider_in(role.model)
        if is_provider_same and changed.get("api_base", role.api_base) == role.api_base:
            key = {"api_key_block": None} if self.api_key_env is not None else {}
            return role.model_copy(update={**key, **changed})
        elsewhere: dict[str, object] = dict.fromkeys(("api_base", "api_key_env", "api_key_block"))
        elsewhere |= {"extra": {}, "fallbacks": ()}
        return role.model_copy(update={**elsewhere, **changed})


class SystemSpec(Declared):
    """Who plays each role in one of the systems that are compared; left empty, as the config declares."""

    models: str | None = Field(None, min_length=1)
    """A model version, `NAME@v3`, that plays all roles that it has."""
    generator: PlayerSpec | None = None
    """Who answers."""
    verifier: PlayerSpec | None = None
    """Who criticises."""
    refiner: PlayerSpec | None = None
    """Who answers again."""
    roles: tuple[Literal["generator", "verifier", "refiner"], ...] = ("generator", "verifier", "refiner")
    """Who takes part. Without a verifier the refiner sees an empty critique; without a refiner the answer is the one
    that the verifier states, else the generator's."""

    @field_validator("roles")
    @classmethod
    def _someone_answers(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if "generator" not in roles or len(set(roles)) < len(roles):
            raise ValueError("the generator always takes part, and every role once: such as [generator, refiner]")
        return roles


def paper_systems(trained: str | None) -> dict[str, SystemSpec]:
    """Return the systems of the paper's tables: untrained, STaR and MALT, each role untrained, and roles left out."""
    whole = SystemSpec(models=trained)
    left_out = {
        "G": SystemSpec(models=trained, roles=("generator",)),
        "G+V": SystemSpec(models=trained, roles=("generator", "verifier")),
        "G+R": SystemSpec(models=trained, roles=("generator", "refiner")),
    }
    if trained is None:
        return {"G+V+R": whole, **left_out}
    player = PlayerSpec(model=trained)
    untrained = {
        "generator-untrained": SystemSpec(verifier=player, refiner=player),
        "verifier-untrained": SystemSpec(generator=player, refiner=player),
        "refiner-untrained": SystemSpec(generator=player, verifier=player),
    }
    return {"untrained": SystemSpec(), "star": SystemSpec(generator=player), "malt": whole, **untrained, **left_out}


class TournamentSpec(Declared):
    """Models for each role; every combination is a system. A role without a list is played as the config declares."""

    generator: tuple[PlayerSpec, ...] = ()
    """Who may answer."""
    verifier: tuple[PlayerSpec, ...] = ()
    """Who may criticise."""
    refiner: tuple[PlayerSpec, ...] = ()
    """Who may answer again."""

    @field_validator("*", mode="before")
    @classmethod
    def _names_alone(cls, players: object) -> object:
        """Let a player be written as a name alone."""
        return (
            [{"model": one} if isinstance(one, str) else one for one in players]
            if isinstance(players, list)
            else players
        )


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
    measure: Literal["sa", "sa_mv", "ma", "ma_mv"] = "ma_mv"
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
            return {"equal_tokens": True, **values, "systems": paper_systems(values.get("models"))}
        return values

    @model_validator(mode="after")
    def _names_can_be_told_apart(self) -> Self:
        for name in self.systems:
            if not re.fullmatch(r"[\w.+-]{1,60}", name):
                raise ValueError(f"system {name!r}: a name has letters, digits and . _ + - only")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds name one twice; each repeat needs a seed of its own")
        return self
