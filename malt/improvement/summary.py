"""Improvement: what rounds came to, in the words of `malt improve --json`; and what this call used for it."""

from collections.abc import Mapping
from dataclasses import asdict, fields

from pydantic import Field

from malt.config.base import Recorded
from malt.engine.build import RunSummary
from malt.evaluation.evaluate import Evaluated
from malt.improvement.decision import RoundDecision
from malt.llm.budget import Usage
from malt.text import count_noun
from malt.training.run import TrainSummary


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
