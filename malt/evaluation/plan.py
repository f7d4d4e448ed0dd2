"""What an evaluation would ask and cost, and what it could show: counted against the store, asking nobody."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from malt.config.base import Recorded
from malt.config.roles import PLAYERS, Role
from malt.engine.job import Job, models_asked
from malt.engine.plan import Quote, RolePlan, add_quotes, plan
from malt.evaluation.job import EvaluationJob
from malt.evaluation.statistics import questions_needed, smallest_difference
from malt.evaluation.systems import Lineup
from malt.llm.store.samples import Store
from malt.questions.screening import Screening

_DISCORDANCES = (0.1, 0.2, 0.3)
"""Shares of questions on which two systems' votes may part."""


class SystemPlan(Recorded):
    """What a system would still be asked that none before it is."""

    roles: dict[Role, RolePlan]


class EvaluationPlan(Quote):
    """The quote of an evaluation, without the votes that an equal number of tokens takes."""

    questions: int
    systems: dict[str, SystemPlan]
    """What each adds to those before it, with all seeds and its control."""
    smallest_difference: dict[str, float | None]
    """What so many questions show with 80 % power, by the share of questions on which two votes part."""
    questions_for_4_points: int
    """How many questions show a difference of 4 points, where two votes part on 20 % of them."""


class _Added(NamedTuple):
    """One role of a line-up that no line-up before it asks in the same place."""

    lineup: Lineup
    role: Role
    quoted: RolePlan


def plan_evaluation(job: EvaluationJob, store: Store, before: Sequence[EvaluationJob] = ()) -> EvaluationPlan:
    """Quote an evaluation: every subtree once, less what the store has and what evaluations `before` it will have.

    Those are of the same questions.
    """
    known = {_name_place(lineup, role) for each in before for lineup in each.lineups for role in _list_asked(lineup)}
    added = _list_added(job, store, known)
    quoted = [each.quoted for each in added]
    systems = {each.lineup.system: SystemPlan(roles={}) for each in added}
    for each in added:
        plans = systems[each.lineup.system].roles
        plans[each.role] = _add_plans(plans[each.role], each.quoted) if each.role in plans else each.quoted
    found = {f"{share:.0%}": smallest_difference(len(job.questions), share) for share in _DISCORDANCES}
    return EvaluationPlan(
        questions=len(job.questions),
        systems=systems,
        **add_quotes(quoted),
        smallest_difference=found,
        questions_for_4_points=round(questions_needed(0.04)),
    )


def _list_added(job: EvaluationJob, store: Store, known: Collection[str]) -> list[_Added]:
    """Quote each line-up's roles that no earlier one asks below the same texts."""
    added, places = [], set(known)
    for lineup in job.lineups:
        quoted = plan(Job(lineup.spec, job.prompts, job.questions, Screening()), store).roles
        for role in _list_asked(lineup):
            place = _name_place(lineup, role)
            if place not in places:
                places.add(place)
                added.append(_Added(lineup, role, quoted[role]))
    return added


def _list_asked(lineup: Lineup) -> list[Role]:
    return [role for role in models_asked(lineup.spec) if role in lineup.roles or role is Role.EVALUATOR]


def _name_place(lineup: Lineup, role: Role) -> str:
    """Name what decides a role's requests: who speaks before it, and itself."""
    depth = PLAYERS.index(role) + 1 if role in PLAYERS else len(PLAYERS)
    cast = [lineup.spec.roles[each].model_dump_json() for each in PLAYERS[:depth] if each in lineup.roles]
    return "\n".join([role.value, *cast])


def _add_plans(first: RolePlan, second: RolePlan) -> RolePlan:
    """Add up what one role is asked in several line-ups of a system."""
    return first.model_copy(update=add_quotes([first, second]))
