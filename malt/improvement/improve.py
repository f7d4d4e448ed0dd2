"""Improvement rounds: grow, train, evaluate, keep what is better; and a quote of what they cost at most.

How a step runs is an argument (`Steps`). Each step first looks for the version that it would make, so a repeated call
resumes one that was killed, and neither pays nor trains twice.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from malt.config.evaluate import PlayerSpec, SystemSpec
from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.build import RunSummary
from malt.engine.job import read_job
from malt.engine.plan import Quote, add_quotes, plan
from malt.engine.run import new_run_name
from malt.engine.runner import run_job
from malt.errors import ConfigError, NothingToPublish, RunStopped
from malt.evaluation.evaluate import Evaluated, evaluate_alone
from malt.evaluation.job import SystemPlan, plan_evaluation, read_evaluation
from malt.evaluation.version import EvaluationVersion
from malt.improvement.found import find_dataset, find_evaluation
from malt.improvement.report import write_report
from malt.improvement.rounds import (
    CANDIDATE,
    CURRENT,
    UNTRAINED,
    Account,
    Improvement,
    Round,
    beside_spec,
    closing_spec,
    comparing_spec,
    deciding_spec,
    growing_spec,
    judge_evaluation,
    list_players,
)
from malt.llm.client.run_lock import hold_run_lock
from malt.llm.provider import embedded
from malt.llm.store.samples import Store
from malt.training.process import Tell, check_installed
from malt.training.run import TrainSummary, find_trained, prepare, train

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # a step takes minutes, so its progress is logged


class Steps(Protocol):
    """The steps of a round, run in this process or as flows."""

    async def grow(self, spec: RunSpec) -> RunSummary: ...

    async def train(self, version: str, earlier: Sequence[str], spec: TrainSpec) -> TrainSummary: ...

    async def evaluate(self, spec: RunSpec) -> Evaluated: ...


class Here:
    """Runs steps in this process, without Prefect."""

    def __init__(self, settings: Settings, tell: Tell = lambda _: None) -> None:
        self._settings = settings
        self._tell = tell

    async def grow(self, spec: RunSpec) -> RunSummary:
        return await run_job(read_job(spec, self._settings))

    async def train(self, version: str, earlier: Sequence[str], spec: TrainSpec) -> TrainSummary:
        settings, tell = self._settings, self._tell
        return await asyncio.to_thread(train, version, spec, earlier=earlier, tell=tell, settings=settings)

    async def evaluate(self, spec: RunSpec) -> Evaluated:
        return await evaluate_alone(read_evaluation(spec), self._settings)


def improve(spec: RunSpec | str | Path, overrides: Sequence[str] = (), *, tell: Tell = lambda _: None) -> Improvement:
    """Run the rounds that a config declares under `[improve]`, and return their result.

    Takes a `RunSpec`, or the path of a config and overrides such as `improve.rounds=3`. Steps whose version is on disk
    are not repeated. Raises what a run, a training and an evaluation raise.
    """
    declared = spec if isinstance(spec, RunSpec) else load_spec(Path(spec), overrides)
    settings = Settings()
    return asyncio.run(improve_alone(declared, settings, Here(settings, tell)))


async def improve_alone(spec: RunSpec, settings: Settings, steps: Steps) -> Improvement:
    """Run the rounds, under a lock that one improvement of a name holds at a time."""
    check(spec, settings)
    async with hold_run_lock(name_lock(spec), settings, f"improvement {new_run_name()}"):
        return await go_round(spec, settings, steps)


def name_lock(spec: RunSpec) -> str:
    """Return the name of the lock that prevents two improvements from doing the same work."""
    return f"improve-{spec.name}"


def check(spec: RunSpec, settings: Settings) -> None:
    """Check the whole config before any model is asked. Raises `InputError`."""
    if not embedded.is_embedded(spec.train.base):
        raise ConfigError(
            f"malt improve runs trained roles in the embedded server, and [train] base = {spec.train.base!r} gives "
            "adapters for a server of your own. Set it to `embedded` or embedded/<path.gguf>; or run each round by "
            "hand, with malt run, malt train and malt evaluate"
        )
    embedded.find_weights(spec.train.base)
    check_installed()
    read_job(spec, settings)
    compared = comparing_spec(spec, {UNTRAINED: SystemSpec()}, UNTRAINED)
    read_evaluation(compared)
    for source in spec.improve.beside.values():
        read_evaluation(comparing_spec(compared, {UNTRAINED: SystemSpec()}, UNTRAINED, questions=source))


async def go_round(spec: RunSpec, settings: Settings, steps: Steps) -> Improvement:
    """Run all rounds; with `on_no_gain = "stop"` end after the first one that keeps nothing."""
    started, runner = time.monotonic(), _RoundRunner(spec, settings, steps)
    done = Improvement(name=spec.name, rounds=(), best=None)
    for number in range(1, spec.improve.rounds + 1):
        latest = await runner.run_round(number, done)
        kept = {"best": latest.models} if latest.judgement.is_kept else {}
        done = done.model_copy(update={"rounds": (*done.rounds, latest), **kept})
        log.info(_describe_round(latest))
        write_report(done, settings)
        if not latest.judgement.is_kept and spec.improve.on_no_gain == "stop":
            done = done.model_copy(update={"stopped": f"round {number} kept nothing, so it was the last"})
            break
    done = done.model_copy(update=await runner.close(done))
    counted = {"used": runner.account.used, "wall_s": round(time.monotonic() - started, 1)}
    return done.model_copy(update={**counted, "report": str(write_report(done, settings))})


def _describe_round(latest: Round) -> str:
    gained = f"{latest.judgement.points} points" if latest.judgement.points else "cannot be compared"
    kept = "kept" if latest.judgement.is_kept else "not kept"
    return f"round {latest.number}: {latest.models}: {gained}; {kept}"


class _RoundRunner:
    """Runs rounds and the closing evaluations; each step returns the version on disk, or makes it."""

    def __init__(self, spec: RunSpec, settings: Settings, steps: Steps) -> None:
        self.spec = spec
        self.settings = settings
        self.steps = steps
        self.account = Account()

    async def run_round(self, number: int, before: Improvement) -> Round:
        """Grow trees with the best roles so far, train on them, and compare."""
        in_vain = _count_in_vain(before.rounds)
        log.info(f"round {number}: growing, played by {before.best or 'the roles of the config'}")
        dataset = await self.grow(growing_spec(self.spec, number, before.best, in_vain))
        earlier = [each.dataset for each in before.rounds] if self.spec.improve.rows == "all" else []
        log.info(f"round {number}: training on {', '.join([*earlier, dataset.reference])}")
        models = await self.train(dataset.reference, earlier)
        log.info(f"round {number}: evaluating {models} on held-out questions")
        version = await self.evaluate(deciding_spec(self.spec, before.best, SystemSpec(models=models)))
        judgement = judge_evaluation(version, self.spec.improve)
        return Round(number=number, players=before.best, dataset=dataset.reference, models=models,
                     evaluation=version.reference, judgement=judgement)  # fmt: skip

    async def close(self, done: Improvement) -> dict[str, object]:
        """Run the closing evaluations that the config declares; return their references."""
        models, improve = done.shown, self.spec.improve
        if models is None:
            return {}
        closing, trained = None, SystemSpec(models=models)
        if improve.closing:
            log.info(f"closing: comparing {models} with the untrained roles, and with each role untrained")
            closing = (await self.evaluate(closing_spec(self.spec, trained, list_players(models)))).reference
        beside = {}
        for name, source in improve.beside.items():
            log.info(f"closing: evaluating {models} on {name}")
            beside[name] = (await self.evaluate(beside_spec(self.spec, name, source, trained))).reference
        return {"closing": closing, "beside": beside}

    async def grow(self, spec: RunSpec) -> DatasetVersion:
        job = read_job(spec, self.settings)
        found = await asyncio.to_thread(find_dataset, job)
        if found is not None:
            return found
        summary = await self.steps.grow(job.spec)
        self.account.add(summary)
        if summary.stopped or summary.waits:
            raise RunStopped(summary.sentence)
        if summary.version is None:
            raise NothingToPublish(summary.sentence)
        return open_version(summary.reference, self.settings.datasets_dir)

    async def train(self, version: str, earlier: Sequence[str]) -> str:
        prepared = prepare(version, self.spec.train, self.settings, earlier)
        known = find_trained(prepared)
        if known is not None:
            return known.played_as
        summary = await self.steps.train(version, earlier, self.spec.train)
        self.account.add(summary)
        return f"{summary.models}@v{summary.version}"

    async def evaluate(self, spec: RunSpec) -> EvaluationVersion:
        job = read_evaluation(spec)
        found = await asyncio.to_thread(find_evaluation, job)
        if found is not None:
            return found
        done = await self.steps.evaluate(spec)
        self.account.add(done)
        if done.stopped is not None:
            raise RunStopped(done.sentence)
        if done.version is None or (done.failures and spec.run.on_incomplete == "fail"):
            raise NothingToPublish(done.sentence)
        return done.version


def _count_in_vain(rounds: Sequence[Round]) -> int:
    """Count the rounds since the last one that was kept."""
    kept = [each.number for each in rounds if each.judgement.is_kept]
    return len(rounds) - max(kept, default=0)


# The quote of an improvement, beyond what the store has: no model is asked, and nothing is trained.

_YET_TO_TRAIN = PlayerSpec(seed=4711)
"""Stand-in for a model that does not exist yet: the store has none of its answers."""


class ImprovementPlan(Quote):
    """Quote of all rounds."""

    rounds: int
    first: dict[str, Quote]
    """Quotes of the first round's steps; the store may have its trees."""
    later: dict[str, Quote]
    """Quotes, at most, of each later round's steps: models that do not exist yet grow its trees."""
    end: dict[str, Quote]
    """Quotes of the closing comparisons."""


def plan_improvement(spec: RunSpec, settings: Settings, store: Store) -> ImprovementPlan:
    """Quote an improvement, without the extra votes of the equal-tokens comparison.

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
