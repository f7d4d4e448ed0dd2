"""A run that is cancelled in the UI, or ended with the service: it asks no more, and what it still gets is stored."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.flows.service.conftest import RUN_LIMIT_S, Json, Prefect, Up, declared, free_port, in_form, start
from tests.providers import ScriptedProvider

QUESTIONS = 8
ALL = 13 * QUESTIONS
UNDER_WAY = 4
WAYS = {
    "branch": {"tracking": "branch"},
    "threads": {"tracking": "shard"},
    "processes": {"tracking": "shard", "task_runner": "processes"},
}


def form(name: str, folder: Path, provider: ScriptedProvider, run: Json) -> Json:
    """A run that takes a minute, a few requests at a time."""
    provider.latency_s = 2.0
    return in_form(declared(name, folder, provider, QUESTIONS, limits={"max_in_flight": UNDER_WAY}, run=run))


def wait_for_requests(provider: ScriptedProvider, service: Up) -> None:
    deadline = time.monotonic() + RUN_LIMIT_S
    while provider.request_count <= UNDER_WAY:
        assert time.monotonic() < deadline, (service.data_dir / "prefect" / "worker.log").read_text()[-3000:]
        time.sleep(0.1)


def cancelled(prefect: Prefect, flow_run_id: str) -> Json:
    """Press Cancel, and return the flow run once it has ended."""
    prefect.post(f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLING"}}).raise_for_status()
    return prefect.ended(flow_run_id)


@pytest.mark.parametrize("way", WAYS)
def test_a_cancelled_run_asks_no_more_and_the_next_one_only_for_the_rest(
    way: str, prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    spec = form(f"cancelled-{way}", tmp_path, provider, WAYS[way])
    run = prefect.trigger("generate", spec=spec).raise_for_status().json()
    wait_for_requests(provider, prefect.service)
    assert cancelled(prefect, run["id"])["state_type"] == "CANCELLED"
    sent, provider.latency_s = provider.request_count, 0.0
    assert len(provider.sent) == sent < ALL
    assert prefect.run("generate", spec=spec)["state_type"] == "COMPLETED"
    assert provider.request_count == ALL
    assert all(asked.attempt == 0 for asked in provider.requests)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_ended_with_the_service_stores_what_it_still_gets(
    way: str, provider: ScriptedProvider, tmp_path: Path
) -> None:
    up = start(tmp_path / "data", "--port", free_port())
    client = Prefect(up)
    client.trigger("generate", spec=form("ended", tmp_path, provider, WAYS[way])).raise_for_status()
    wait_for_requests(provider, up)
    client.http.close()
    up.stop()
    assert len(provider.sent) == provider.request_count < ALL
    assert stored(up.data_dir) == provider.completions_sent


def stored(data_dir: Path) -> int:
    """How many answers a store holds."""
    engine = sa.create_engine(f"sqlite:///{data_dir / 'store.db'}")
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT count(response) FROM samples")) or 0)
