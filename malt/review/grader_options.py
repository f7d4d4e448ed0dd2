"""Graders chosen on a command line, concurrent grading of many texts, and the agreement of two graders."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self, get_args

from malt.concurrency import gather_all
from malt.config.base import Recorded
from malt.config.limits import Limits
from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import EvaluatorSpec, GraderKind, RunSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import ConfigError
from malt.grading.graders import Grader, graders_for, objective_grader
from malt.grading.grades import Grade, Outcome
from malt.grading.judge import LLMEvaluator
from malt.grading.user_code import require_trust
from malt.llm.budget import Tally, Usage
from malt.llm.client.completers import make_completer
from malt.llm.client.session import open_session
from malt.llm.provider import embedded
from malt.llm.request import RequestFailed
from malt.prompts import load_prompts
from malt.text import find_close

_KINDS: tuple[GraderKind, ...] = get_args(GraderKind)
_AT_ONCE = 64
"""Texts graded concurrently, or `limits.max_in_flight` if that is more."""


class GraderChoice(NamedTuple):
    """Graders to use, with the prompts and limits that a judge among them needs."""

    evaluator: EvaluatorSpec
    prompts: str = "general"
    limits: Limits = Limits()

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        return cls(spec.evaluator, spec.prompts, spec.limits)

    def by(self, *kinds: GraderKind) -> "GraderChoice":
        """Return a copy with other grader kinds. Raises `ConfigError` for kind `python` without a function."""
        if "python" in kinds and self.evaluator.function is None:
            raise ConfigError(
                "kind 'python' needs a config with [evaluator] function = \"module:function\"; give --config"
            )
        function = self.evaluator.function if "python" in kinds else None
        update = {"kind": kinds, "scope": "leaves", "function": function}
        return self._replace(evaluator=self.evaluator.model_copy(update=update))


def chosen_grading(kinds: Sequence[str], config: Path | None, overrides: Sequence[str]) -> GraderChoice:
    """Return the graders that `malt grade` uses: those of `kinds`, else those of the config. Raises `ConfigError`."""
    chosen = read_kinds(kinds, "--kind")
    if not chosen and config is None:
        raise ConfigError(f"nothing says how to grade; give --config C, or --kind with one of {', '.join(_KINDS)}")
    grading = _declared_grading(config, overrides, otherwise=GraderChoice(EvaluatorSpec()))
    return grading.by(*chosen) if chosen else grading


def _declared_grading(config: Path | None, overrides: Sequence[str], otherwise: GraderChoice) -> GraderChoice:
    """Return the graders of a config, or `otherwise` without a config. Raises `ConfigError`."""
    if config is not None:
        return GraderChoice.of(load_spec(config, overrides))
    if overrides:
        key, _, _ = overrides[0].partition("=")
        raise ConfigError(f"--set {key}: changes a key of a config, but there is no config; give --config")
    return otherwise


def audit_grading(
    version: DatasetVersion,
    kinds: Sequence[GraderKind],
    config: Path | None,
    overrides: Sequence[str],
    *,
    trust_code: bool = False,
) -> GraderChoice:
    """Return the graders for grading a version again: those of a config, else the version's own if they are trusted.

    Raises `InputError` if the version names code that is not trusted, `VersionError` if it is from elsewhere and names
    a judge other than the embedded model.
    """
    grading = _declared_grading(config, overrides, otherwise=GraderChoice.of(version.spec))
    evaluator = grading.evaluator
    if config is None and "python" in kinds and evaluator.function is not None:
        require_trust(version.reference, evaluator.function, trusted=trust_code)
    # Whether only the embedded model is called, which comes with this project.
    is_packaged = evaluator.model == embedded.NAME and evaluator.api_base is None and not evaluator.fallbacks
    if config is None and "llm" in kinds and not is_packaged:
        judge = f"a judge, {evaluator.model!r}, which would get its texts and a key"
        version.refuse_foreign(Settings().datasets_dir, judge, "name a judge of your own with --config")
    return grading


def read_kinds(given: Sequence[str], option: str) -> tuple[GraderKind, ...]:
    """Parse grader kinds, repeated or separated by commas. Raises `ConfigError` for an unknown kind."""
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in _KINDS:
            close = find_close(name, _KINDS)
            meant = f"; did you mean {close}?" if close else "."
            raise ConfigError(f"{option} {name}: no such kind of grader{meant} Allowed: {', '.join(_KINDS)}")
    if given and not names:
        raise ConfigError(f"{option} names no kind of grader; give one of {', '.join(_KINDS)}")
    return tuple(kind for kind in dict.fromkeys(names) if kind in _KINDS)


class OpenedGraders:
    """Checked graders, and the usage of their judge."""

    def __init__(self, grading: GraderChoice) -> None:
        """Check what the graders need, without calling a model. Raises `InputError`."""
        self.grading = grading
        self._tallies: list[Tally] = []
        spec = grading.evaluator
        self._prompts = load_prompts(grading.prompts) if "llm" in spec.kind else None
        if self._prompts is not None:
            from malt.llm.provider import call

            call.check(spec, grading.limits)
        if spec.function is not None:
            objective_grader("python", spec).check(None)

    @property
    def used(self) -> Usage:
        used = Tally()
        for tally in self._tallies:
            used.merge(tally)
        return used.total

    def for_questions(self, question_ids: Iterable[str]) -> tuple[Grader, ...]:
        """Return the graders; the judge uses stored replies for these questions, and asks for the rest."""
        spec = self.grading.evaluator
        if self._prompts is None:
            return graders_for(spec, None)
        ask = make_completer(open_session(Settings(), self.grading.limits), question_ids, asks={Role.EVALUATOR})
        self._tallies.append(ask.tally)
        return graders_for(spec, LLMEvaluator.from_spec(spec, self._prompts, ask))


async def grade_all(work: Sequence[Callable[[], Awaitable[Grade]]], limits: Limits) -> list[Grade]:
    """Run all grading concurrently, and return the grades in order.

    A failed request to a judge makes that grade unknown. Raises `RunStopped`.
    """
    grades, waiting = dict[int, Grade](), iter(enumerate(work))

    async def grade_some() -> None:
        for place, grade in waiting:
            try:
                grades[place] = await grade()
            except RequestFailed as failure:
                grades[place] = Grade(Outcome.UNKNOWN, None, "llm", None, str(failure))
            await asyncio.sleep(0)  # most graders never await, and Ctrl-C is handled only between tasks

    await gather_all(grade_some() for _ in range(max(_AT_ONCE, limits.max_in_flight)))
    return [grades[place] for place in range(len(work))]


VerdictPairs = Counter[tuple[bool | None, bool | None]]
"""Number of answers by the verdicts of two graders: True for right, False for wrong, None for unknown."""


class Agreement(Recorded):
    """Agreement of two graders."""

    compared: int
    """Answers on which both graders have a verdict."""
    unknown: int
    """Answers left out because a grader has no verdict."""
    agreement: float | None
    """Share of the compared answers with the same verdict; None where there are none."""
    kappa: float | None
    """Cohen's kappa (Cohen 1960); None where it is undefined, as chance alone gives full agreement."""


def measure_agreement(verdicts: VerdictPairs) -> Agreement:
    both, first, second, neither = (verdicts[one, other] for one in (True, False) for other in (True, False))
    compared = both + first + second + neither
    by_chance = (both + first) * (both + second) + (second + neither) * (first + neither)
    beyond = compared**2 - by_chance
    return Agreement(
        compared=compared,
        unknown=verdicts.total() - compared,
        agreement=(both + neither) / compared if compared else None,
        kappa=(compared * (both + neither) - by_chance) / beyond if beyond else None,
    )
