"""Figures of an improvement, read from its evaluation versions: what the report, the table and the artifact show."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from malt.config.roles import PLAYERS
from malt.evaluation.report import Gain, write_title
from malt.evaluation.summary import MEASURES, Cell, Compared, Measure, Summary, SystemSummary
from malt.evaluation.version import EvaluationVersion, open_evaluation
from malt.grading.grades import Outcome
from malt.improvement.decision import CANDIDATE, CURRENT, RoundDecision
from malt.improvement.specs import TRAINED, UNTRAINED, without
from malt.improvement.summary import Improvement

LEAST_REACH = 5.0
"""Points that the axis of gains reaches to either side at least."""


class Line(NamedTuple):
    """Roles of one round, and how often they are right."""

    title: str
    models: str
    """What plays; empty for the config's own roles."""
    cells: Mapping[Measure, Cell]
    truncated: float
    """Share of final texts that were cut off."""
    judgement: RoundDecision | None
    """None for the roles that the first round began with."""


class SystemRow(NamedTuple):
    """One system of an evaluation at the end."""

    system: str
    cells: Mapping[str, Cell]
    """By what is counted."""


class RoleGain(NamedTuple):
    """What training gave."""

    of: str
    compared: Compared
    """How much better the trained roles are than without it."""


class RoundFigures(NamedTuple):
    """All that is shown."""

    done: Improvement
    measure: Measure
    chains: int
    questions: int
    lines: list[Line]
    closing: list[SystemRow]
    worths: list[RoleGain]
    beside: dict[str, list[SystemRow]]


def read_figures(done: Improvement) -> RoundFigures:
    versions = [open_evaluation(each.evaluation) for each in done.rounds]
    last = versions[-1].summary
    closing = open_evaluation(done.closing).summary if done.closing else None
    beside = {name: list(list_rows(open_evaluation(each).summary)) for name, each in done.beside.items()}
    return RoundFigures(
        done=done,
        measure=last.measure,
        chains=last.chains,
        questions=last.questions,
        lines=list(list_lines(done, versions)),
        closing=list(list_rows(closing)) if closing else [],
        worths=list(list_worths(closing)) if closing else [],
        beside=beside,
    )


def list_lines(done: Improvement, versions: list[EvaluationVersion]) -> Iterator[Line]:
    """Yield the roles that the first round began with, then what each round trained."""
    yield Line("before", "", *read_system(versions[0], CURRENT), None)
    for each, version in zip(done.rounds, versions, strict=True):
        yield Line(f"round {each.number}", each.models, *read_system(version, CANDIDATE), each.judgement)


def read_system(version: EvaluationVersion, system: str) -> tuple[Mapping[Measure, Cell], float]:
    """Return how often a system is right, by measure, and which share of its final texts was cut off."""
    answers = version.answers
    outcomes = answers[(answers["system"] == system) & (answers["kind"] == "chain")]["outcome"]
    cells = {measure: getattr(version.summary.systems[system], measure) for measure in MEASURES}
    return cells, float((outcomes == Outcome.TRUNCATED).mean())


def list_rows(summary: Summary) -> Iterator[SystemRow]:
    for name, system in summary.systems.items():
        yield SystemRow(name, dict(list_cells(system, summary.chains)))


def list_cells(system: SystemSummary, chains: int) -> Iterator[tuple[str, Cell]]:
    yield from ((write_title(measure, chains), getattr(system, measure)) for measure in MEASURES)
    if system.control is not None:
        at = f"T = {system.control.temperature:g}"
        yield from ((f"single agent, {at}", system.control.sa), (f"pipeline, {at}", system.control.ma))


def list_worths(summary: Summary) -> Iterator[RoleGain]:
    """Yield what all training gave, and that of each role: the trained roles less those without it."""
    lacking = {"all roles": UNTRAINED, **{f"the {role.value}": without(role.value) for role in PLAYERS}}
    for of, system in lacking.items():
        found = summary.differences.get(system)
        if found is not None and summary.baseline == TRAINED:
            turned = {"difference": -found.difference, "low": -found.high, "high": -found.low}
            yield RoleGain(of, found.model_copy(update=turned))


def place_worths(worths: list[RoleGain]) -> tuple[list[Gain], float]:
    """Place gains on one axis with zero in its middle, and return how many points it reaches to either side."""
    ends = [abs(end) for worth in worths for end in (worth.compared.low, worth.compared.high)]
    reach = max(LEAST_REACH, LEAST_REACH * -(-100 * max(ends, default=0) // LEAST_REACH))
    places = [[50 + 50 * 100 * each / reach for each in (one.low, one.difference, one.high)]
              for one in (worth.compared for worth in worths)]  # fmt: skip
    return [Gain(worth.of, worth.compared, *place) for worth, place in zip(worths, places, strict=True)], reach
