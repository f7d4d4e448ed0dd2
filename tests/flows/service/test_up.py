"""`malt up`: the processes that it starts, the server that it adopts, and that no process is left behind."""

import os
import subprocess
from pathlib import Path

import httpx
import psycopg

from tests.flows.service.conftest import MALT, PROJECT, RUN_LIMIT_S, Prefect, Up, start, wait_for
from tests.postgres import free_port
from tests.postgres import postgres as postgres


def test_the_ui_every_deployment_and_a_worker_are_there(prefect: Prefect) -> None:
    page = httpx.get(prefect.service.api_url.removesuffix("/api"), follow_redirects=True, timeout=RUN_LIMIT_S)
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    for flow in ("generate", "from-config", "assemble", "rerun", "notify", "mark-crashed"):
        deployed = prefect.deployment(flow)
        assert deployed["work_pool_name"] == "malt"
        assert deployed["description"]
    wait_for(lambda: "ONLINE" in worker_states(prefect))  # workers of other tests may be listed as offline


def worker_states(prefect: Prefect) -> set[str]:
    workers = prefect.post("/work_pools/malt/workers/filter", {}).raise_for_status().json()
    return {worker["status"] for worker in workers}


def test_the_server_watches_for_runs_that_fail_or_fall_silent(prefect: Prefect) -> None:
    automations = prefect.post("/automations/filter", {}).raise_for_status().json()
    assert {each["name"]: each["trigger"]["posture"] for each in automations} == {
        "MALT: tell of a failed run": "Reactive",
        "MALT: a silent run has crashed": "Proactive",
        "MALT: train what was published": "Reactive",  # this one and the next are disabled by default
        "MALT: evaluate what was trained": "Reactive",
    }


def test_the_error_names_a_port_that_is_taken(service: Up, tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    port = service.api_url.split(":")[2].removesuffix("/api")
    environment = {**inherited, "MALT_DATA_DIR": str(tmp_path / "data")}
    command = [MALT, "up", "--port", port]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    assert result.returncode == 2
    assert f"the server cannot start on port {port}" in result.stderr
    assert "choose others with --port" in result.stderr


def test_an_existing_server_is_used_and_left_running_with_the_changes_made_in_its_ui(
    service: Up, prefect: Prefect, tmp_path: Path
) -> None:
    deployed = prefect.deployment("rerun")
    changes = {"parameters": {"name": "other"}, "tags": ["mine"], "paused": False}
    path = f"/deployments/{deployed['id']}"
    prefect.ask("PATCH", path, changes).raise_for_status()
    schedule = {"schedule": {"interval": 86400}, "active": False}
    prefect.post(f"{path}/schedules", [schedule]).raise_for_status()
    before = prefect.deployment("rerun")
    up = start(tmp_path / "data", **service.as_named)
    output = read_until_ready(up)
    assert up.api_url == service.api_url
    assert "left as set in the UI: quickstart, from-config, rerun, assemble" in output
    assert "deployed: " not in output
    up.stop()
    wait_for(lambda: up.processes() == [])
    assert httpx.get(f"{service.api_url}/health", timeout=RUN_LIMIT_S).json() is True
    kept = prefect.deployment("rerun")
    assert {name: kept[name] for name in ("parameters", "tags", "version")} == {
        name: before[name] for name in ("parameters", "tags", "version")
    }
    assert [each["id"] for each in kept["schedules"]] == [each["id"] for each in before["schedules"]]


def read_until_ready(up: Up) -> str:
    """Return the rest of the lines that `malt up` prints when it is ready; `start` has read the first."""
    assert up.process.stdout is not None
    output = ""
    while "Ctrl-C" not in output:
        line = up.process.stdout.readline()
        assert line, output
        output += line
    return output


def test_redeploy_resets_changes_made_in_the_ui_and_a_killed_service_leaves_no_process(
    service: Up, prefect: Prefect, tmp_path: Path
) -> None:
    path = f"/deployments/{prefect.deployment('assemble')['id']}"
    prefect.ask("PATCH", path, {"tags": ["mine"]}).raise_for_status()
    up = start(tmp_path / "data", "--redeploy", **service.as_named)
    names = "quickstart, from-config, rerun, assemble, train, evaluate, improve, alerts, mark-crashed"
    assert f"deployed: {names}" in read_until_ready(up)
    assert prefect.deployment("assemble")["tags"] == ["malt"]
    assert up.processes()
    up.process.kill()
    up.process.communicate()
    wait_for(lambda: up.processes() == [])


def test_records_are_in_postgres_if_requested(postgres: str, tmp_path: Path) -> None:
    url = postgres.replace("postgresql", "postgresql+asyncpg", 1)
    environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    up = start(tmp_path / "data", "--port", str(free_port()), "--postgres", **environment)
    read_until_ready(up)
    with psycopg.connect(postgres) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM deployment")]
    assert {"quickstart", "from-config", "alerts"} <= set(names)
    assert not (up.data_dir / "prefect" / "prefect.db").exists()
    up.stop()
