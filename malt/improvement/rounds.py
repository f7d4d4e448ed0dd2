"""Rounds: the configs that they grow and compare, the decision to keep, and the results in `malt improve --json`."""

from collections.abc import Mapping
from dataclasses import asdict, fields

from pydantic import Field

from malt.config.base import Recorded
from malt.config.evaluate import ImproveSpec, PlayerSpec, SystemSpec
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS
from malt.config.spec import RunSpec
from malt.engine.build import RunSummary
from malt.evaluation.card import points
from malt.evaluation.evaluate import Evaluated
from malt.evaluation.statistics import Scores, paired_difference
from malt.evaluation.systems import cast_models, require_evaluate
from malt.evaluation.table import make_sheets
from malt.evaluation.version import EvaluationVersion
from malt.llm.budget import Usage
from malt.models.version import open_model
from malt.text import count_noun
from malt.training.run import TrainSummary

CURRENT, CANDIDATE = "current", "candidate"
"""Systems of a round's evaluation: the roles that grew its trees, and those trained on them."""


class RoundDecision(Recorded):
    """Decision whether to keep a round's models, with the gain that it rests on."""

    is_kept: bool
    """Whether the trained roles play from now on."""
    difference: float | None
    """Gain over the roles before, by the deciding measure; None where no question has a known score for both."""
    low: float | None
    """Lower bound of the gain's interval; the decision uses it."""
    high: float | None
    questions: int

    @property
    def points(self) -> str:
        """The gain in points with its interval; empty where nothing could be compared."""
        if self.difference is None or self.low is None or self.high is None:
            return ""
        return points(self.difference, self.low, self.high)


def decide(candidate: Scores, current: Scores, spec: ImproveSpec) -> RoundDecision:
    """Keep the candidate only where the lower bound of its gain is above the margin and the paired test is significant.

    With a handful of questions the bound alone is too optimistic.
    """
    found = paired_difference(candidate, current, level=spec.level)
    if found is None:
        return RoundDecision(is_kept=False, difference=None, low=None, high=None, questions=0)
    return RoundDecision(
        is_kept=found.low > spec.margin and found.p <= 1 - spec.level,
        difference=found.difference,
        low=found.low,
        high=found.high,
        questions=found.questions,
    )


def judge_evaluation(version: EvaluationVersion, spec: ImproveSpec) -> RoundDecision:
    sheets = make_sheets(version.spec, version.answers, "chain")
    measure = spec.measure or require_evaluate(version.spec).measure
    scores = {name: sheets[name].scores(measure) for name in (CANDIDATE, CURRENT)}
    return decide(scores[CANDIDATE], scores[CURRENT], spec)


# The configs that rounds grow and compare.

UNTRAINED, TRAINED = "untrained", "trained"
"""Systems of the closing evaluations."""


def growing_spec(spec: RunSpec, number: int, best: str | None, in_vain: int) -> RunSpec:
    """Return the config of a round's trees, played by the best roles so far.

    `in_vain`, the number of rounds since the last kept one, shifts the seeds, or the roles would repeat their answers.
    """
    roles = cast_models(best, spec)
    if in_vain:
        roles = roles.changed(lambda _, own: own.model_copy(update={"seed": (own.seed or 0) + in_vain}))
    thresholds = spec.improve.thresholds
    chosen = {"threshold": thresholds[min(number, len(thresholds)) - 1]} if thresholds else {}
    return spec.model_copy(update={"roles": roles, "credit": spec.credit.model_copy(update=chosen)})


def deciding_spec(spec: RunSpec, best: str | None, trained: SystemSpec) -> RunSpec:
    """Return the config of a round's evaluation: only the trained roles, and the roles that grew its trees."""
    systems = {CURRENT: SystemSpec(models=best), CANDIDATE: trained}
    measure = spec.improve.measure or require_evaluate(spec).measure
    return comparing_spec(spec, systems, CURRENT, measure=measure, temperature=None, equal_tokens=False)


def closing_spec(spec: RunSpec, trained: SystemSpec, players: Mapping[str, PlayerSpec]) -> RunSpec:
    """Return the config of the closing evaluation: untrained, trained, and trained but for each role in turn."""
    others = {role: {other: players[other] for other in players if other != role} for role in players}
    left_out = {without(role): SystemSpec(**rest) for role, rest in others.items() if rest}
    return comparing_spec(spec, {UNTRAINED: SystemSpec(), TRAINED: trained, **left_out}, TRAINED)


def list_players(models: str) -> dict[str, PlayerSpec]:
    """Return a player for each role that a model version has."""
    roles = [role.value for role in PLAYERS if role in open_model(models).manifest.roles]
    return dict.fromkeys(roles, PlayerSpec(model=models))


def without(role: str) -> str:
    return f"{role}-untrained"


def beside_spec(spec: RunSpec, name: str, source: QuestionSource, trained: SystemSpec) -> RunSpec:
    """Return the config of a comparison on another question file, published under a name of its own."""
    systems = {UNTRAINED: SystemSpec(), TRAINED: trained}
    named = spec.model_copy(update={"name": f"{spec.name}-{name}"[:100]})
    return comparing_spec(named, systems, UNTRAINED, questions=source, equal_tokens=False)


def comparing_spec(spec: RunSpec, systems: Mapping[str, SystemSpec], baseline: str, **changed: object) -> RunSpec:
    """Return a config that compares only these systems."""
    fixed = {"systems": systems, "baseline": baseline, "tournament": None, "race": False}
    return spec.model_copy(update={"evaluate": require_evaluate(spec).model_copy(update={**fixed, **changed})})


# Results of the rounds, and the usage of one call.


class Round(Recorded):
    """One round: the versions that it made, and the decision about its models."""

    number: int
    players: str | None
    """The model version whose roles grew its trees; None: the config's own."""
    dataset: str
    models: str
    evaluation: str
    judgement: RoundDecision


class Used(Recorded):
    """Usage of one call; zero where all versions were on disk."""

    requests: int = 0
    completions: int = 0
    cached_completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """None where a completion's cost is unknown."""
    failed_branches: int = 0
    roles_trained: int = 0
    """Roles that were trained because no model version had them."""


class Improvement(Recorded):
    """Result of `malt improve`."""

    name: str
    rounds: tuple[Round, ...]
    best: str | None
    """The model version that was kept last; None where nothing was better than the config's own roles."""
    closing: str | None = None
    """Reference of the closing evaluation."""
    beside: Mapping[str, str] = Field(default_factory=dict)
    """References of the evaluations on further question files, by name."""
    stopped: str = ""
    """Why the rounds stopped, where one kept nothing; else empty."""
    report: str | None = None
    used: Used = Used()
    wall_s: float = 0.0

    @property
    def shown(self) -> str | None:
        """The model version that the closing evaluations compare: the best, or where none was kept the last."""
        return self.best or (self.rounds[-1].models if self.rounds else None)

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed branches."""
        return 1 if self.used.failed_branches else 0

    @property
    def sentence(self) -> str:
        """The result in one line."""
        kept = f"{self.best} is the best" if self.best else "nothing was better than the config's own roles"
        rounds = count_noun(len(self.rounds), "round")
        return f"{self.name}: {rounds}, {kept}{'; ' if self.stopped else ''}{self.stopped}"


class Account:
    """Running total of a call's usage."""

    def __init__(self) -> None:
        self._usage, self._failed, self._trained = Usage(), 0, 0

    @property
    def used(self) -> Used:
        return Used(**asdict(self._usage), failed_branches=self._failed, roles_trained=self._trained)

    def add(self, done: RunSummary | Evaluated | TrainSummary) -> None:
        if isinstance(done, TrainSummary):
            self._trained += sum(not role.cached for role in done.roles.values())
        else:
            self._usage.add(Usage(**{field.name: getattr(done, field.name) for field in fields(Usage)}))
            self._failed += len(done.failures)
