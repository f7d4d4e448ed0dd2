"""A deployment on a schedule: new rows of a growing source are requested once, and runs never overlap."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from malt.config.spec import RunSpec
from tests.flows.service.conftest import Json, Prefect, declared, in_form, pid_of, wait_for
from tests.providers import ScriptedProvider

EVERY_S = 6
"""Slightly shorter than a run, so that runs wait for each other but do not pile up on a busy machine."""


@pytest.fixture
def every_few_seconds(prefect: Prefect) -> Iterator[Callable[[RunSpec], None]]:
    """Schedule the generate deployment with a spec, during the test."""
    path = f"/deployments/{prefect.deployment('generate')['id']}/schedules"
    made: list[str] = []

    def schedule(spec: RunSpec) -> None:
        body = [{"schedule": {"interval": EVERY_S}, "active": True, "parameters": {"spec": in_form(spec)}}]
        made.extend(each["id"] for each in prefect.post(path, body).raise_for_status().json())

    yield schedule
    for each in made:
        prefect.ask("DELETE", f"{path}/{each}").raise_for_status()
    for waiting in prefect.flow_runs("generate", "SCHEDULED"):
        prefect.ask("DELETE", f"/flow_runs/{waiting['id']}")


def add_questions(source: Path, day: int) -> None:
    """Add a file of four rows."""
    numbers = range(10 * day, 10 * day + 4)
    rows = [{"question": f"What is {number} + 100?", "answer": f"#### {number + 100}"} for number in numbers]
    part = source / f"day-{day}.part"  # a run may be reading the folder
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.rename(part.with_suffix(".jsonl"))


def with_two_samples(spec: RunSpec) -> RunSpec:
    """Return the spec with two samples a role: 1 + 2 + 4 requests a question."""
    config = spec.as_config()
    for role in config["roles"].values():
        role["samples"] = 2
    return RunSpec.model_validate(config)


def test_each_new_row_of_a_growing_folder_makes_a_version_and_no_request_is_sent_twice(
    prefect: Prefect,
    provider: ScriptedProvider,
    tmp_path: Path,
    every_few_seconds: Callable[[RunSpec], None],
) -> None:
    source = tmp_path / "growing"
    source.mkdir()
    add_questions(source, 1)
    spec = declared("growing", tmp_path, provider, 1, questions={"source": str(source / "*.jsonl"), "format": "gsm8k"})
    every_few_seconds(with_two_samples(spec))
    wait_for(lambda: prefect.numbers("growing") == [1])
    add_questions(source, 2)
    wait_for(lambda: prefect.numbers("growing") == [1, 2])
    published = datetime.now(UTC)
    wait_for(lambda: any(began(run) > published for run in runs_of("growing", prefect)))

    assert prefect.numbers("growing") == [1, 2]
    assert prefect.newest("growing").manifest.counts.complete == 2 * 4
    assert provider.request_count == 2 * 28  # 28 for four new rows, none without new rows
    assert all(asked.attempt == 0 for asked in provider.requests)


def runs_of(dataset: str, prefect: Prefect) -> list[Json]:
    """Return the completed runs of a dataset."""
    done = prefect.flow_runs("generate", "COMPLETED")
    return [run for run in done if run["parameters"]["spec"]["name"] == dataset]


def began(run: Json) -> datetime:
    return datetime.fromisoformat(run["start_time"])


def test_the_nightly_schedule_is_there_and_off(prefect: Prefect) -> None:
    schedules = prefect.deployment("generate")["schedules"]
    assert [(each["schedule"]["cron"], each["active"]) for each in schedules if each["slug"] == "nightly"] == [
        ("0 3 * * *", False)
    ]


def test_several_datasets_grow_at_once_and_a_second_run_of_one_says_which_it_waits_for(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.holds = True
    ids = []
    for name in ("first", "second", "first"):
        (tmp_path / name).mkdir(exist_ok=True)
        spec = declared(name, tmp_path / name, provider, 1)
        ids.append(prefect.trigger("generate", spec=in_form(spec)).raise_for_status().json()["id"])
        if name == "first":
            wait_for(lambda: provider.request_count > 0)
    wait_for(lambda: provider.request_count == 2)  # of both datasets
    wait_for(lambda: prefect.state(ids[2])["name"] == "Waiting")
    said = prefect.state(ids[2])["message"]
    assert said.startswith(f"for flow run first ({ids[0][:8]}), process {pid_of(ids[0])}")
    provider.holds = False
    assert [prefect.ended(each)["state_type"] for each in ids] == ["COMPLETED"] * 3
    assert len(leases(prefect, ids[2])) == 1  # of the deployment's limit; a lost lease would free its slot too early
    assert prefect.numbers("first") == [1]
    assert provider.request_count == 2 * 13


def leases(client: Prefect, flow_run_id: str) -> set[str | None]:
    """Return the concurrency leases of a flow run's running states."""
    states = client.http.get("/flow_run_states/", params={"flow_run_id": flow_run_id}).raise_for_status().json()
    running = [each["state_details"] for each in states if each["type"] == "RUNNING"]
    assert len(running) >= 3  # running, waiting, running
    assert running[0]["deployment_concurrency_lease_id"]
    return {each["deployment_concurrency_lease_id"] for each in running}
