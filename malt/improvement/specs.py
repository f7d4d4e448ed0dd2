"""What is asked in a round, as configs: who grows its trees, and which systems its evaluations compare."""

from collections.abc import Mapping

from malt.config.evaluate import PlayerSpec, SystemSpec
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from malt.evaluation.systems import cast_models, require_evaluate
from malt.improvement.decision import CANDIDATE, CURRENT, choose_measure
from malt.models.version import open_model

UNTRAINED, TRAINED = "untrained", "trained"
"""The systems of the evaluations at the end."""


def growing_spec(spec: RunSpec, number: int, best: str | None, in_vain: int) -> RunSpec:
    """Return what a round grows: the config's trees, played by the best roles so far.

    After rounds `in_vain` in a row the same roles are asked with other seeds, or they would only say the same again.
    """
    roles = cast_models(best, spec)
    if in_vain:
        roles = roles.changed(lambda _, own: own.model_copy(update={"seed": (own.seed or 0) + in_vain}))
    thresholds = spec.improve.thresholds
    chosen = {"threshold": thresholds[min(number, len(thresholds)) - 1]} if thresholds else {}
    return spec.model_copy(update={"roles": roles, "credit": spec.credit.model_copy(update=chosen)})


def deciding_spec(spec: RunSpec, best: str | None, trained: SystemSpec) -> RunSpec:
    """Return what a round's evaluation compares: what it trained with who grew its trees, and nothing beside."""
    systems = {CURRENT: SystemSpec(models=best), CANDIDATE: trained}
    measure = choose_measure(spec.improve, require_evaluate(spec))
    return comparing_spec(spec, systems, CURRENT, measure=measure, temperature=None, equal_tokens=False)


def closing_spec(spec: RunSpec, trained: SystemSpec, players: Mapping[str, PlayerSpec]) -> RunSpec:
    """Return what is compared at the end: untrained, trained, and trained with each role untrained in its turn."""
    others = {role: {other: players[other] for other in players if other != role} for role in players}
    left_out = {without(role): SystemSpec(**rest) for role, rest in others.items() if rest}
    return comparing_spec(spec, {UNTRAINED: SystemSpec(), TRAINED: trained, **left_out}, TRAINED)


def list_players(models: str) -> dict[str, PlayerSpec]:
    """Return who plays each role that was trained."""
    roles = [role.value for role in PLAYERS if role in open_model(models).manifest.roles]
    return dict.fromkeys(roles, PlayerSpec(model=models))


def without(role: str) -> str:
    return f"{role}-untrained"


def beside_spec(spec: RunSpec, name: str, source: QuestionSource, trained: SystemSpec) -> RunSpec:
    """Return what is compared on another question file; it is a name of its own among evaluations."""
    systems = {UNTRAINED: SystemSpec(), TRAINED: trained}
    named = spec.model_copy(update={"name": f"{spec.name}-{name}"[:100]})
    return comparing_spec(named, systems, UNTRAINED, questions=source, equal_tokens=False)


def comparing_spec(spec: RunSpec, systems: Mapping[str, SystemSpec], baseline: str, **changed: object) -> RunSpec:
    """Return a config that compares these systems alone."""
    fixed = {"systems": systems, "baseline": baseline, "tournament": None, "race": False}
    return spec.model_copy(update={"evaluate": require_evaluate(spec).model_copy(update={**fixed, **changed})})
