"""Rounds: what one grows and compares, as configs; what decides; what they came to, as `malt improve --json` says."""

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
"""The systems of a round's evaluation: who grew its trees, and what was trained on them."""


class RoundDecision(Recorded):
    """Whether a round's models play from now on, and by how much they are better."""

    is_kept: bool
    """Whether the trained roles play from now on."""
    difference: float | None
    """What they have over those before them, by the measure that decides; None where no question is known of both."""
    low: float | None
    """Lower bound of its interval, which decides."""
    high: float | None
    questions: int

    @property
    def points(self) -> str:
        """The gain in points with its interval; empty where nothing could be compared."""
        if self.difference is None or self.low is None or self.high is None:
            return ""
        return points(self.difference, self.low, self.high)


def decide(candidate: Scores, current: Scores, spec: ImproveSpec) -> RoundDecision:
    """Keep what was trained only where the lower bound of its gain is above the margin, and the test finds a gain: of a
    handful of questions the bound alone says too much.
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


# What is asked, as configs.

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
    measure = spec.improve.measure or require_evaluate(spec).measure
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


# What rounds came to, and what one call used for it.


class Round(Recorded):
    """One round: the versions that it made, and what became of its roles."""

    number: int
    players: str | None
    """The model version whose roles grew its trees; None: the config's own."""
    dataset: str
    models: str
    evaluation: str
    judgement: RoundDecision


class Used(Recorded):
    """What one call used; nothing where all was there."""

    requests: int = 0
    completions: int = 0
    cached_completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """None where a completion's cost is unknown."""
    failed_branches: int = 0
    roles_trained: int = 0
    """Those that no model version had."""


class Improvement(Recorded):
    """What `malt improve` came to."""

    name: str
    rounds: tuple[Round, ...]
    best: str | None
    """The model version that was kept last; None: nothing is better than the config's own roles."""
    closing: str | None = None
    """The evaluation at the end."""
    beside: Mapping[str, str] = Field(default_factory=dict)
    """Evaluations on further question files, by name."""
    stopped: str = ""
    """Why there are fewer rounds than were asked for; empty where there are not."""
    report: str | None = None
    used: Used = Used()
    wall_s: float = 0.0

    @property
    def shown(self) -> str | None:
        """The models that the end is about: the best, or where none was kept the last that were tried."""
        return self.best or (self.rounds[-1].models if self.rounds else None)

    @property
    def exit_code(self) -> int:
        """0 done, 1 with failed branches."""
        return 1 if self.used.failed_branches else 0

    @property
    def sentence(self) -> str:
        """How it ended, in one line."""
        kept = f"{self.best} is the best" if self.best else "nothing was better than the config's own roles"
        rounds = count_noun(len(self.rounds), "round")
        return f"{self.name}: {rounds}, {kept}{'; ' if self.stopped else ''}{self.stopped}"


class Account:
    """Adds up what a call uses."""

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
