"""Flow `improve`: questions -> trees -> models -> evaluation, in rounds; each step is a subflow. A rerun resumes."""

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
    """Grow, train and evaluate round by round, and keep trained roles that are better than those before."""
    await tag_by_spec(spec)
    settings = Settings()
    check(spec, settings)
    async with only_run_of(name_lock(spec)):
        result = await go_round(spec, settings, Flows())
    await leave_markdown(render_markdown(result), f"{result.name}-improvement", result.sentence)
    state = Failed if result.exit_code else Completed
    return state(message=result.sentence, data=result)


class Flows:
    """Runs the steps of a round as subflows; a subflow with failed branches returns its summary too."""

    async def grow(self, spec: RunSpec) -> RunSummary:
        summary: RunSummary = await outcome(await generate(spec, return_state=True))
        return summary

    async def train(self, version: str, earlier: Sequence[str], spec: TrainSpec) -> TrainSummary:
        summary: TrainSummary = await outcome(await train(version, earlier=earlier, spec=spec, return_state=True))
        return summary

    async def evaluate(self, spec: RunSpec) -> Evaluated:
        evaluated: Evaluated = await outcome(await evaluate(spec, return_state=True))
        return evaluated


async def outcome(state: State[Any]) -> Any:  # noqa: ANN401 - each flow has its own type
    """Return the result of a subflow in any state. Raises its error if it has no result."""
    result = await state.aresult(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result
