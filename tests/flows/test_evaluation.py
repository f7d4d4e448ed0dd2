"""`evaluate` under Prefect: the same version as without it, and artifacts with its figures."""

import asyncio
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import ArtifactSort

from flows.evaluation import evaluate
from malt.config.roles import Fallback
from malt.evaluation.evaluate import Evaluated
from malt.evaluation.job import read_evaluation
from malt.evaluation.version import open_evaluation
from tests import mishaps
from tests.evaluation.planted import CHAINS, QUESTIONS, planted_spec
from tests.providers import ScriptedProvider

SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.star]\ngenerator = { model = "openai/better" }\n'


async def run_flow(folder: Path, provider: ScriptedProvider) -> State[Any]:
    state: State[Any] = await evaluate(planted_spec(folder, provider, SYSTEMS), return_state=True)
    return state


async def read_artifact(key: str) -> str:
    async with get_client() as client:
        newest = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        found = await client.read_artifacts(artifact_filter=newest, sort=ArtifactSort.CREATED_DESC)
    return str(found[0].data)


def test_a_run_keeps_to_the_limits_of_all_its_systems_models(tmp_path: Path, provider: ScriptedProvider) -> None:
    """Each of the four models gets one request at a time; its previous answer may still be on the wire."""

    async def run() -> State[Any]:
        async with get_client() as client:
            await client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name="malt-openai-better", limit=1)
            )
            try:
                return await run_flow(tmp_path, provider)
            finally:
                await client.delete_global_concurrency_limit_by_name("malt-openai-better")

    assert asyncio.run(run()).is_completed()
    assert provider.max_in_flight <= 2 * 4


def test_the_models_of_an_evaluation_are_those_of_its_systems_and_their_fallbacks(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    declared = planted_spec(tmp_path, provider, '[evaluate.systems.alone]\nroles = ["generator"]\n')
    generator = declared.roles.generator.model_copy(update={"fallbacks": (Fallback(model="openai/spare"),)})
    spec = declared.model_copy(update={"roles": declared.roles.model_copy(update={"generator": generator})})
    assert [each.model for each in read_evaluation(spec).models] == ["openai/generator", "openai/spare"]


def test_a_flow_run_publishes_an_evaluation_and_shows_its_figures(tmp_path: Path, provider: ScriptedProvider) -> None:
    async def run() -> tuple[State[Any], str]:
        return await run_flow(tmp_path, provider), await read_artifact("planted-evaluation")

    state, shown = asyncio.run(run())
    assert state.is_completed()
    assert provider.request_count == QUESTIONS * 2 * (1 + 2 * CHAINS)
    version = open_evaluation("evaluations/planted")
    accuracy = version.summary.systems["star"].sa.accuracy
    assert accuracy == 1.0
    assert "| `star` | single agent | ████████████████████ | 100.0 (" in shown
    assert str(version.path) in shown


def test_a_flow_run_with_failed_branches_fails_and_its_retry_asks_for_just_those(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    provider.faults = lambda asked: mishaps.bad_request() if "What is 103 + 10" in asked.prompt else None
    state = asyncio.run(run_flow(tmp_path, provider))
    assert state.is_failed()
    assert "2 failed branches; run again" in str(state.message)
    asked, provider.faults = provider.request_count, None
    again = asyncio.run(run_flow(tmp_path, provider))
    assert again.is_completed()
    assert provider.request_count - asked == 2 * (1 + 2 * CHAINS)
    done = asyncio.run(again.aresult())
    assert isinstance(done, Evaluated)
    assert done.version is not None
    assert done.version.number == 2
