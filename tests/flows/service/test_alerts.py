"""What the server does by itself: one alert a failure, with the state that the event told of; dead runs are marked."""

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.watch import has_heartbeat
from tests import mishaps
from tests.flows.service.conftest import ENDED, Json, Prefect, declared, in_form, pid_of, wait_for
from tests.providers import ScriptedProvider


@pytest.fixture
def alerts(prefect: Prefect) -> Iterator[Prefect]:
    """The service with its automations, for as long as the test lasts."""
    prefect.switch_automations(on=True, named="MALT: ")
    prefect.switch_automations(on=False, named="train what was published")
    yield prefect
    prefect.switch_automations(on=False)


def told_of(client: Prefect) -> dict[str, list[tuple[str, str]]]:
    """The alerts that have ended, by flow run: name and state."""
    told: dict[str, list[tuple[str, str]]] = {}
    for run in (run for state in ENDED for run in client.flow_runs("notify", state)):
        about = run["parameters"]
        told.setdefault(about["resource"].removeprefix("prefect.flow-run."), []).append((about["run"], about["state"]))
    return told


def test_each_failure_is_told_of_once_with_its_state_and_no_run_is_marked_that_has_ended(
    alerts: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.faults = mishaps.when(lambda asked: asked.model == "refiner-model", mishaps.context_overflow())
    failed = alerts.run("generate", spec=in_form(declared("branch-alert", tmp_path, provider, 1)))
    nowhere = declared("nowhere-alert", tmp_path, provider, 1, questions={"source": "/nowhere.jsonl"})
    unread = alerts.run("generate", spec=in_form(nowhere))
    provider.faults, provider.holds = None, True
    sent = provider.request_count
    killed = begin(alerts, in_form(declared("killed-alert", tmp_path, provider, 1)))
    wait_for(lambda: provider.request_count > sent)
    os.kill(pid_of(killed), signal.SIGKILL)
    provider.holds = False
    assert alerts.ended(killed)["state"]["name"] == "Crashed"
    assert (
        alerts.run("generate", spec=in_form(declared("no-alert", tmp_path, provider, 1)))["state_type"] == "COMPLETED"
    )

    wanted = {
        failed["id"]: [("branch-alert", "Failed")],
        unread["id"]: [("nowhere-alert", "Failed")],
        killed: [("killed-alert", "Crashed")],
    }
    wait_for(lambda: told_of(alerts).keys() >= wanted.keys())
    assert told_of(alerts) == wanted
    assert [run for state in ENDED for run in alerts.flow_runs("mark-crashed", state)] == []


def begin(client: Prefect, spec: Json) -> str:
    return str(client.trigger("generate", spec=spec).raise_for_status().json()["id"])


def test_a_run_that_has_just_begun_is_left_alone_and_a_silent_one_is_marked_with_its_task_runs(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.holds = True
    flow_run_id = begin(prefect, in_form(declared("silent", tmp_path, provider, 1)))
    wait_for(lambda: provider.request_count > 0 and prefect.state(flow_run_id)["name"] == "Running")
    prefect.run("mark-crashed", resource=f"prefect.flow-run.{flow_run_id}")
    assert prefect.state(flow_run_id)["name"] == "Running"

    os.kill(pid_of(flow_run_id), signal.SIGSTOP)
    prefect.run("mark-crashed", resource=f"prefect.flow-run.{flow_run_id}", silence_s=0.0)
    assert prefect.state(flow_run_id)["message"].startswith("No sign of life")
    assert prefect.open_task_runs(flow_run_id) == []
    os.kill(pid_of(flow_run_id), signal.SIGKILL)
    provider.holds = False


def test_a_heartbeat_counts_for_as_long_as_was_asked(prefect: Prefect) -> None:
    now, resource = datetime.now(UTC), f"prefect.flow-run.{uuid4()}"
    heartbeat = {
        "id": str(uuid4()),
        "event": "prefect.flow-run.heartbeat",
        "occurred": (now - timedelta(minutes=2)).isoformat(),
        "resource": {"prefect.resource.id": resource},
    }
    prefect.post("/events", [heartbeat]).raise_for_status()
    service = {PREFECT_API_URL: prefect.service.api_url, PREFECT_API_AUTH_STRING: prefect.service.auth_string}
    with temporary_settings(service):
        wait_for(lambda: asyncio.run(has_heartbeat(resource, now - timedelta(minutes=3))))
        assert not asyncio.run(has_heartbeat(resource, now - timedelta(minutes=1)))
