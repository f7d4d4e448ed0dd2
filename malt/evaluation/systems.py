"""Systems: the models that play each role, as configs. Systems that share a role share its answers in the store."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

from malt.config.evaluate import EvaluateSpec, PlayerSpec, SystemSpec
from malt.config.roles import PLAYERS, Role, Roles, RoleSpec
from malt.config.spec import GrowthSpec, RunSpec
from malt.errors import ConfigError, named_place
from malt.llm.request import Complete, Completion, CompletionRequest, FinishReason
from malt.models.playing import with_weights
from malt.models.version import open_model

Kind = Literal["chain", "control", "votes"]


class Lineup(NamedTuple):
    """One system with one seed, as the config of a run that asks its models."""

    system: str
    seed: int | None
    kind: Kind
    """`control`: at another temperature; `votes`: the single agent of the equal-tokens comparison."""
    spec: RunSpec
    """Config with as many generations as there are chains, and one text of each further role below each."""
    roles: tuple[Role, ...]
    """Roles that take part; the others are not asked."""

    @property
    def chains(self) -> int:
        """Number of answers to each question."""
        return self.spec.roles[PLAYERS[0]].samples


def require_evaluate(spec: RunSpec) -> EvaluateSpec:
    """Return a config's `[evaluate]` part. Raises `ConfigError` where it has none."""
    if spec.evaluate is None:
        raise ConfigError(
            f"{spec.name}: the config has no [evaluate]; say there which questions and systems to compare"
        )
    return spec.evaluate


def _list_systems(spec: RunSpec) -> dict[str, SystemSpec]:
    """Return a config's systems by name: declared ones and a tournament's; its own roles where there are none."""
    entered = {entrant.name: entrant.system for entrant in list_entrants(spec)}
    return {**require_evaluate(spec).systems, **entered} or {"pipeline": SystemSpec()}


def find_baseline(spec: RunSpec) -> str:
    """Return the name of the system that others are compared with. Raises `ConfigError` where it does not exist."""
    names, wanted = list(_list_systems(spec)), require_evaluate(spec).baseline
    if wanted is not None and wanted not in names:
        raise ConfigError(f"evaluate.baseline = {wanted!r} is no system; there are: {', '.join(names)}")
    return wanted or names[0]


class Entrant(NamedTuple):
    """One system of a tournament, and its models by role."""

    name: str
    system: SystemSpec
    models: Mapping[Role, str]


def list_entrants(spec: RunSpec) -> list[Entrant]:
    """Return every combination of a tournament's models; names leave out the roles with a single model."""
    tournament = require_evaluate(spec).tournament
    if tournament is None:
        return []
    fields = [_name_players(spec, role, getattr(tournament, role.value)) for role in PLAYERS]
    return [
        _make_entrant(chosen, [len(field) > 1 for field in fields])
        for chosen in product(*(field.items() for field in fields))
    ]


def _name_players(spec: RunSpec, role: Role, declared: Sequence[PlayerSpec]) -> dict[str, PlayerSpec]:
    """Name the players of a role by their models; where a name repeats, add the player's number."""
    named: dict[str, PlayerSpec] = {}
    for player in declared or (PlayerSpec(),):
        label = (player.model or spec.roles[role].model).rpartition("/")[2]
        named[label if label not in named else f"{label}-{len(named) + 1}"] = player
    return named


def _make_entrant(chosen: Sequence[tuple[str, PlayerSpec]], contested: Sequence[bool]) -> Entrant:
    names = [name for (name, _), is_open in zip(chosen, contested, strict=True) if is_open] or [chosen[0][0]]
    system = SystemSpec(**{role.value: player for role, (_, player) in zip(PLAYERS, chosen, strict=True)})
    return Entrant("/".join(names), system, {role: name for role, (name, _) in zip(PLAYERS, chosen, strict=True)})


def list_lineups(spec: RunSpec) -> list[Lineup]:
    """Return the line-ups of each system: its chains with every seed, and the control where there is one."""
    evaluate = require_evaluate(spec)
    return [each for name, system in _list_systems(spec).items() for each in _lineups(name, system, spec, evaluate)]


def _lineups(name: str, system: SystemSpec, spec: RunSpec, evaluate: EvaluateSpec) -> Iterator[Lineup]:
    roles = tuple(Role(role) for role in PLAYERS if role.value in system.roles)
    cold = {"temperature": evaluate.temperature}
    for seed in evaluate.seeds or (None,):
        played = _cast_system(system, spec, seed, evaluate.chains)
        yield Lineup(name, seed, "chain", _make_asking_spec(name, spec, played), roles)
        if evaluate.temperature is not None:
            control = with_samples(played.changed(lambda _, own: own.model_copy(update=cold)), 1)
            yield Lineup(name, seed, "control", _make_asking_spec(name, spec, control), roles)


def _cast_system(system: SystemSpec, spec: RunSpec, seed: int | None, chains: int) -> Roles:
    def cast(role: Role, trained: RoleSpec) -> RoleSpec:
        player: PlayerSpec | None = getattr(system, role.value)
        chosen = trained if player is None else player.plays(trained)
        return chosen if seed is None else chosen.model_copy(update={"seed": seed})

    return with_samples(cast_models(system.models, spec).changed(cast), chains)


def cast_models(models: str | None, spec: RunSpec) -> Roles:
    """Return a config's roles, those that a model version was trained for played by that version."""
    trained = open_model(models).manifest.roles if models else ()
    player = PlayerSpec(model=models)
    return spec.roles.changed(lambda role, own: player.plays(own) if role in trained else own)


def with_samples(roles: Roles, chains: int) -> Roles:
    """Set the number of samples: `chains` for the first role, one for each further role."""
    return roles.changed(lambda role, own: own.model_copy(update={"samples": chains if role is PLAYERS[0] else 1}))


def _make_asking_spec(name: str, spec: RunSpec, roles: Roles) -> RunSpec:
    """Return the config of a run with a system's roles, with the digests of its models' weights filled in."""
    with named_place(f"system {name!r}"):
        return with_weights(spec.model_copy(update={"roles": roles, "growth": GrowthSpec(), "evaluate": None}))


def mute_absent(lineup: Lineup, complete: Complete) -> Complete:
    """Return a `Complete` that asks only the roles that take part; the others get empty texts, without a request."""

    async def speak(request: CompletionRequest) -> Sequence[Completion]:
        if request.role in lineup.roles or request.role is Role.EVALUATOR:
            return await complete(request)
        return [Completion(key, "", None, FinishReason.STOP, "", 0, 0, 0.0) for key in request.keys]

    return speak
