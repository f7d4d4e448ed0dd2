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
    each_round: dict[str, Quote]
    """What every round asks at most; the first one's trees may be stored."""
    once: dict[str, Quote]


def plan_improvement(spec: RunSpec, settings: Settings, store: Store) -> ImprovementPlan:
    """Quote an improvement, without the votes that an equal number of tokens takes.

    Raises what reading the config's questions raises.
    """
    rounds, players = spec.improve.rounds, {role.value: _YET_TO_TRAIN for role in PLAYERS if getattr(spec.train, role)}
    trained = SystemSpec(**players)
    first, later = (plan(read_job(growing_spec(spec, 1, None, in_vain), settings), store) for in_vain in (0, 1))
    deciding = read_evaluation(deciding_spec(spec, None, trained))
    systems = plan_evaluation(deciding, store).systems
    each_round = {"trees": later, "held-out questions": _add_up(systems[CANDIDATE])}
    once = {"held-out questions, untrained": _add_up(systems[CURRENT])}
    if spec.improve.closing:
        closing = read_evaluation(closing_spec(spec, trained, players))
        once["comparison at the end"] = plan_evaluation(closing, store, [deciding])
    for name, source in spec.improve.beside.items():
        once[name] = plan_evaluation(read_evaluation(beside_spec(spec, name, source, trained)), store)
    parts = [first, *[later] * (rounds - 1), *[each_round["held-out questions"]] * rounds, *once.values()]
    return ImprovementPlan(rounds=rounds, each_round=each_round, once=once, **add_quotes(parts))


def _add_up(system: SystemPlan) -> Quote:
    return Quote(**add_quotes(system.roles.values()))
