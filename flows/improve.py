"""questions -> trees -> models -> evaluation, round by round; each step is a flow of its own. Run again, it goes on."""

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.evaluation import evaluate
from flows.generate import generate
from flows.train import train
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.config.train import TrainSpec
from malt.engine.build import RunSummary
from malt.evaluation.evaluate import Evaluated
from malt.improvement.improve import check, go_round, name_lock
from malt.improvement.report import render_markdown
from malt.improvement.rounds import Improvement
from malt.training.run import TrainSummary
from tasks.artifacts import leave_markdown, tag_by_spec
from tasks.run_lock import close_after_crash, only_run_of


@flow(name="improve", flow_run_name="improve {spec.name}", on_crashed=[close_after_crash])
async def improve(spec: RunSpec) -> State[Improvement]:
    """Grow, train and evaluate round by round, and keep what is better than the roles before it."""
    await tag_by_spec(spec)
    settings = Settings()
    check(spec, settings)
    async with only_run_of(name_lock(spec)):
        done = await go_round(spec, settings, Flows())
    await leave_markdown(render_markdown(done), f"{done.name}-improvement", done.sentence)
    state = Failed if done.exit_code else Completed
    return state(message=done.sentence, data=done)


class Flows:
    """Carries out the steps of a round as subflows; one with failed branches has its summary too."""

    async def grow(self, spec: RunSpec) -> RunSummary:
        summary: RunSummary = await outcome(await generate(spec, return_state=True))
        return summary

    async def train(self, version: str, earlier: Sequence[str], spec: TrainSpec) -> TrainSummary:
        summary: TrainSummary = await outcome(await train(version, earlier=earlier, spec=spec, return_state=True))
        return summary

    async def evaluate(self, spec: RunSpec) -> Evaluated:
        done: Evaluated = await outcome(await evaluate(spec, return_state=True))
        return done


async def outcome(state: State[Any]) -> Any:  # noqa: ANN401 - each flow has its own
    """Return what a subflow came to. Raises its error where it came to nothing."""
    result = await state.aresult(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result
