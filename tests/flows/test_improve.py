"""`improve` under Prefect, from the command line: each step is a flow run, and a second call repeats none."""

import asyncio
import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterStartTime
from prefect.types._datetime import now

from malt.cli.main import exit_code
from malt.improvement.rounds import Improvement
from tests.improvement.sevens import write_config
from tests.providers import ScriptedProvider
from tests.training.conftest import write_tiny

pytest.importorskip("trl", reason="the extra `train` is not installed")


def improve(config: Path, capfd: pytest.CaptureFixture[str]) -> Improvement:
    assert exit_code(["improve", str(config), "--rounds", "1", "--json"]) == 0
    return Improvement.model_validate(json.loads(capfd.readouterr().out))


async def look(since: object) -> tuple[list[str], str]:
    """Return the names of the flows that ran, and the artifact's text."""
    async with get_client() as client:
        begun = FlowRunFilter(start_time=FlowRunFilterStartTime(after_=since))
        runs = await client.read_flow_runs(flow_run_filter=begun)
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["sevens-improvement"]))
        (artifact,) = await client.read_artifacts(artifact_filter=key, limit=1)
    return sorted(run.name for run in runs), str(artifact.data)


def test_the_command_runs_each_step_as_a_flow_and_repeats_none(
    tmp_path: Path, provider: ScriptedProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    began = now("UTC")
    improved = write_config(tmp_path, provider, write_tiny(tmp_path), "closing = false")
    config = tmp_path / "refiner.toml"
    config.write_text(improved.read_text().replace("verifier = []", "generator = []\nverifier = []"))
    first = improve(config, capfd)
    assert (first.best, first.used.roles_trained) == ("sevens@v1", 1)
    ran, shown = asyncio.run(look(began))
    assert ran == ["evaluate sevens", "improve sevens", "sevens", "train sevens@v1"]
    assert "| round 1 | `sevens@v1` |" in shown
    asked, again = provider.request_count, improve(config, capfd)
    assert (again.rounds, again.used.requests, again.used.roles_trained) == (first.rounds, 0, 0)
    assert provider.request_count == asked
    assert asyncio.run(look(began))[0] == sorted([*ran, "improve sevens"])
