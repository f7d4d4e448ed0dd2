"""Runs that are cancelled, suspended or stopped with the service: they send no more requests and store all replies."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.flows.service.conftest import (
    RUN_LIMIT_S,
    Json,
    Prefect,
    Up,
    declared,
    in_form,
    pid_of,
    start,
    wait_for,
)
from tests.postgres import free_port
from tests.providers import ScriptedProvider

QUESTIONS = 8
ALL = 13 * QUESTIONS
UNDER_WAY = 4
BRANCHES: Json = {"tracking": "branch"}
PROCESSES: Json = {"tracking": "shard", "task_runner": "processes"}


def begin(client: Prefect, provider: ScriptedProvider, folder: Path, run: Json, name: str) -> str:
    """Start a run that takes a minute, a few requests at a time; return its id after the first requests."""
    provider.latency_s = 2.0
    spec = declared(name, folder, provider, QUESTIONS, limits={"max_in_flight": UNDER_WAY}, run=run)
    flow_run_id = client.trigger("generate", spec=in_form(spec)).raise_for_status().json()["id"]
    deadline = time.monotonic() + RUN_LIMIT_S
    while provider.request_count <= UNDER_WAY:
        assert time.monotonic() < deadline, (client.service.data_dir / "prefect" / "worker.log").read_text()[-3000:]
        time.sleep(0.1)
    return str(flow_run_id)


def stored(service: Up, flow_run_id: str) -> int:
    """Number of answers that the store has from a run."""
    with closing(sqlite3.connect(service.data_dir / "store.db")) as store:
        counted = store.execute("SELECT count(response) FROM samples WHERE run LIKE ?", [f"%-{flow_run_id[:8]}"])
        return int(counted.fetchone()[0])


def test_a_cancelled_run_sends_no_more_requests_and_stores_all_replies(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    flow_run_id = begin(prefect, provider, tmp_path, BRANCHES, "cancelled")
    prefect.set_state(flow_run_id, type="CANCELLING")
    assert prefect.ended(flow_run_id)["state_type"] == "CANCELLED"
    assert len(provider.sent) == provider.request_count < ALL
    assert stored(prefect.service, flow_run_id) == provider.completions_sent
    assert prefect.errors(flow_run_id) == []


def test_a_suspended_run_sends_no_more_requests_publishes_nothing_and_goes_on_when_it_is_resumed(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    flow_run_id = begin(prefect, provider, tmp_path, BRANCHES, "suspended")
    later = {"pause_reschedule": True, "pause_timeout": "2099-01-01T00:00:00Z"}
    prefect.set_state(flow_run_id, type="PAUSED", name="Suspended", state_details=later)
    wait_for(lambda: not is_running(flow_run_id))
    assert len(provider.sent) == provider.request_count < ALL
    assert prefect.state(flow_run_id)["name"] == "Suspended"
    assert prefect.numbers("suspended") == []
    assert prefect.errors(flow_run_id) == []
    provider.latency_s = 0.0
    prefect.post(f"/flow_runs/{flow_run_id}/resume", {}).raise_for_status()
    assert prefect.ended(flow_run_id)["state_type"] == "COMPLETED"
    assert provider.request_count == ALL
    wait_for(lambda: prefect.open_task_runs(flow_run_id) == [])


def is_running(flow_run_id: str) -> bool:
    try:
        return bool(pid_of(flow_run_id))
    except AssertionError:
        return False


def test_a_killed_service_is_reported_by_the_next_one_whose_run_stores_all_replies_before_ctrl_c_ends_it(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    up = start(tmp_path / "data", "--port", str(free_port()))
    client = Prefect(up)
    lost = begin(client, provider, tmp_path, BRANCHES, "lost")
    elsewhere = run_of_another_machine(client)
    client.http.close()
    up.process.kill()
    up.process.communicate()
    wait_for(lambda: up.processes() == [])

    again = start(tmp_path / "data", "--port", str(free_port()))
    assert again.process.stdout is not None
    while "was running when `malt up` was killed" not in (line := again.process.stdout.readline()):
        assert line
    assert line.startswith("lost: ")
    client = Prefect(again)
    assert client.state(lost)["type"] == "CRASHED"
    assert client.state(elsewhere)["type"] == "RUNNING"

    with ScriptedProvider() as other:
        stopped = begin(client, other, tmp_path, PROCESSES, "stopped")
        client.http.close()
        assert len(again.processes()) >= 6  # server, worker and what ties it, the run and its workers
        again.stop()
        assert again.process.returncode == 0
        wait_for(lambda: again.processes() == [])
        assert len(other.sent) == other.request_count < ALL
        assert stored(again, stopped) == other.completions_sent


def run_of_another_machine(client: Prefect) -> str:
    """Record a run on another machine, whose process id no process of this machine has."""
    wanted = {"state": {"type": "RUNNING"}, "labels": {"prefect.worker.name": "malt up on elsewhere"}}
    path = f"/deployments/{client.deployment('assemble')['id']}/create_flow_run"
    flow_run_id = str(client.post(path, wanted).raise_for_status().json()["id"])
    client.ask("PATCH", f"/flow_runs/{flow_run_id}", {"infrastructure_pid": str(2**30)}).raise_for_status()
    return flow_run_id
