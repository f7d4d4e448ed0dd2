"""Automations of the server: one alert for each failure, with the state in its event; dead runs are marked."""

import asyncio
import math
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Running

from flows.generate import generate
from flows.watch import was_heard_of
from tests import mishaps
from tests.flows.service.conftest import ENDED, Json, Prefect, declared, in_form, pid_of, wait_for
from tests.providers import ScriptedProvider

QUESTIONS, UNDER_WAY = 4, 4


@pytest.fixture
def alerts(prefect: Prefect) -> Iterator[Prefect]:
    """The service with its automations enabled during the test."""
    prefect.switch_automations(on=True, named="MALT: ")
    prefect.switch_automations(on=False, named="train what was published")
    yield prefect
    prefect.switch_automations(on=False)


def ended_alerts(client: Prefect) -> dict[str, list[tuple[str, str]]]:
    """Return the alerts that have ended, by flow run: the run's name and state."""
    found: dict[str, list[tuple[str, str]]] = {}
    for run in (run for state in ENDED for run in client.flow_runs("notify", state)):
        about = run["parameters"]
        found.setdefault(about["resource"].removeprefix("prefect.flow-run."), []).append((about["run"], about["state"]))
    return found


def test_each_failure_gets_one_alert_with_its_state_and_a_killed_run_goes_on_when_it_is_retried(
    alerts: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "refiner-model", mishaps.context_overflow())
    failed = alerts.run("generate", spec=in_form(declared("branch-alert", tmp_path, provider, 1)))
    provider.faults, sent = None, provider.request_count
    provider.holds_from = sent + UNDER_WAY
    limited = declared("killed-alert", tmp_path, provider, QUESTIONS, limits={"max_in_flight": UNDER_WAY})
    killed = begin(alerts, in_form(limited))
    wait_for(lambda: provider.request_count > provider.holds_from)
    os.kill(pid_of(killed), signal.SIGKILL)
    provider.holds_from = math.inf
    assert alerts.ended(killed)["state"]["name"] == "Crashed"
    wait_for(lambda: alerts.open_task_runs(killed) == [])
    wait_for(lambda: is_done_with(alerts, killed))  # before that, the worker would mark the retry as crashed
    assert alerts.retry(killed)["state"]["message"] == f"killed-alert@v1: {QUESTIONS} questions complete"
    assert provider.request_count - sent <= 13 * QUESTIONS + 3 * UNDER_WAY  # on the wire: each role has an endpoint

    wanted = {failed["id"]: [("branch-alert", "Failed")], killed: [("killed-alert", "Crashed")]}
    wait_for(lambda: ended_alerts(alerts).keys() >= wanted.keys())
    assert ended_alerts(alerts) == wanted
    assert [run for state in ENDED for run in alerts.flow_runs("mark-crashed", state)] == []


def is_done_with(client: Prefect, flow_run_id: str) -> bool:
    """Whether the worker has sent its last event about a run's process."""
    of_run = {
        "event": {"name": ["prefect.worker.executed-flow-run"]},
        "related": {"id": [f"prefect.flow-run.{flow_run_id}"]},
    }
    return bool(client.post("/events/filter", {"filter": of_run}).raise_for_status().json()["events"])


def begin(client: Prefect, spec: Json) -> str:
    return str(client.trigger("generate", spec=spec).raise_for_status().json()["id"])


def test_a_silent_run_is_marked_with_its_task_runs(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.holds = True
    flow_run_id = begin(prefect, in_form(declared("silent", tmp_path, provider, 1)))
    wait_for(lambda: provider.request_count > 0 and prefect.state(flow_run_id)["name"] == "Running")
    os.kill(pid_of(flow_run_id), signal.SIGSTOP)
    prefect.run("mark-crashed", resource=f"prefect.flow-run.{flow_run_id}", silence_s=0.0)
    assert prefect.state(flow_run_id)["message"].startswith("No sign of life")
    assert prefect.open_task_runs(flow_run_id) == []
    os.kill(pid_of(flow_run_id), signal.SIGKILL)
    provider.holds = False


def test_the_start_of_a_run_and_its_heartbeats_are_signs_of_life(prefect: Prefect) -> None:
    async def heard_of(since: datetime) -> bool:
        return await was_heard_of(run, since)

    service = {PREFECT_API_URL: prefect.service.api_url, PREFECT_API_AUTH_STRING: prefect.service.auth_string}
    with temporary_settings(service):
        with get_client(sync_client=True) as client:
            run = client.create_flow_run(generate, state=Running())
        assert run.state is not None
        began = run.state.timestamp
        assert asyncio.run(heard_of(began - timedelta(seconds=1)))
        assert not asyncio.run(heard_of(began))
        heartbeat = {
            "id": str(uuid4()),
            "event": "prefect.flow-run.heartbeat",
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        }
        prefect.post("/events", [heartbeat]).raise_for_status()
        wait_for(lambda: asyncio.run(heard_of(began)))
        prefect.set_state(str(run.id), type="CANCELLED", name="Cancelled")
