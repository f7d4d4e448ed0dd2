"""`prefect.yaml` on a real server: both flows are deployed, and a worker runs what the API asks for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse

from malt.config import load_spec
from malt.datasets.version import open_version
from malt.settings import Settings
from malt.spec import RunSpec
from tests.configs import write_config
from tests.providers import ScriptedProvider

PROJECT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).parent / "prefect")


def prefect(api_url: str, *arguments: str) -> None:
    """Run one of Prefect's own commands in the project's folder."""
    settings = {**os.environ, "PREFECT_API_URL": api_url}
    done = subprocess.run([PREFECT, *arguments], cwd=PROJECT, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def client(api_url: str) -> Iterator[SyncPrefectClient]:
    """A client of a server where everything is deployed to a process work pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="malt", type="process"))
        prefect(api_url, "--no-prompt", "deploy", "--all")
        yield client


def deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    return client.read_deployment_by_name(f"{name}/malt")


@pytest.mark.parametrize("name", ["generate", "assemble"])
def test_a_deployment_of_each_flow_offers_the_quickstart(
    client: SyncPrefectClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    deployed = deployment(client, name)
    assert RunSpec.model_validate(deployed.parameters["spec"]) == load_spec(Path("configs/quickstart.toml"))
    assert deployed.work_pool_name == "malt"
    assert deployed.description


def test_a_worker_runs_a_deployment_to_a_dataset(
    client: SyncPrefectClient, api_url: str, provider: ScriptedProvider, tmp_path: Path
) -> None:
    spec = load_spec(write_config(tmp_path, provider, questions=2))
    wanted = deployment(client, "generate").id
    flow_run = client.create_flow_run_from_deployment(wanted, parameters={"spec": spec.as_config()})
    prefect(api_url, "worker", "start", "--pool", "malt", "--run-once")
    ended = client.read_flow_run(flow_run.id)
    assert ended.state is not None
    assert (ended.state.name, ended.state.message) == ("Completed", "sums@v1: 2 questions complete")
    assert open_version(str(Settings().datasets_dir / "sums" / "v1")).manifest.counts.complete == 2
    assert provider.request_count == 26
