"""What going round would ask and cost at most: counted against the store, asking nobody and training nothing."""

from malt.config.evaluate import PlayerSpec, SystemSpec
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import read_job
from malt.engine.plan import Quote, add_quotes, plan
from malt.evaluation.job import read_evaluation
from malt.evaluation.plan import SystemPlan, plan_evaluation
from malt.improvement.decision import CANDIDATE, CURRENT
from malt.improvement.specs import beside_spec, closing_spec, deciding_spec, growing_spec
from malt.llm.store.samples import Store

_YET_TO_TRAIN = PlayerSpec(seed=4711)
"""Stands for a model that does not exist yet: like it, it has said nothing."""


class ImprovementPlan(Quote):
    """The quote of all rounds."""

    rounds: int
    first: dict[str, Quote]
    """What the first round asks: its trees may be stored."""
    later: dict[str, Quote]
    """What each later round asks, at most: its trees are grown by models that do not exist yet."""
    end: dict[str, Quote]
    """What the comparisons at the end ask."""


def plan_improvement(spec: RunSpec, settings: Settings, store: Store) -> ImprovementPlan:
    """Quote an improvement, without the votes that an equal number of tokens takes.

    Raises what reading the config's questions raises.
    """
    rounds, players = spec.improve.rounds, {role.value: _YET_TO_TRAIN for role in PLAYERS if getattr(spec.train, role)}
    trained = SystemSpec(**players)
    first, later = (plan(read_job(growing_spec(spec, 1, None, in_vain), settings), store) for in_vain in (0, 1))
    deciding = read_evaluation(deciding_spec(spec, None, trained))
    systems = plan_evaluation(deciding, store).systems
    of_models = {"held-out questions": _add_up(systems[CANDIDATE])}
    untrained = {"held-out questions, untrained": _add_up(systems[CURRENT])}
    end: dict[str, Quote] = {}
    if spec.improve.closing:
        closing = read_evaluation(closing_spec(spec, trained, players))
        end["comparison"] = plan_evaluation(closing, store, [deciding])
    for name, source in spec.improve.beside.items():
        end[name] = plan_evaluation(read_evaluation(beside_spec(spec, name, source, trained)), store)
    quoted = {"first": {"trees": first, **untrained, **of_models}, "later": {"trees": later, **of_models}, "end": end}
    times = {"first": 1, "later": rounds - 1, "end": 1}
    parts = [part for when, steps in quoted.items() for part in [*steps.values()] * times[when]]
    return ImprovementPlan(rounds=rounds, **quoted, **add_quotes(parts))


def _add_up(system: SystemPlan) -> Quote:
    return Quote(**add_quotes(system.roles.values()))
