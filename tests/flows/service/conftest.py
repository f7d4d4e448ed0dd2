"""`malt up` as a real process, started once, and driven through the HTTP API that Prefect's UI uses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from malt.config.spec import RunSpec
from malt.datasets.version.dataset_version import DatasetVersion, list_versions
from malt.datasets.version.folders import version_numbers
from tests.postgres import free_port
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

MALT = str(Path(sys.executable).parent / "malt")
PROJECT = Path(__file__).parents[3]
KEY = "test-key-4711"
SECRET = "sk-ant-0123456789abcdefghij"
RUN_LIMIT_S = 900.0
"""A worker's runs have a low priority: beside processes that keep all cores busy, they take minutes."""
DEPLOYMENTS = {"generate": "quickstart", "notify": "alerts"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

Json = Any


class Up(NamedTuple):
    """A `malt up` that is ready."""

    process: "subprocess.Popen[str]"
    api_url: str
    data_dir: Path

    @property
    def auth_string(self) -> str:
        return (self.data_dir / "prefect" / "auth").read_text().strip()

    @property
    def as_named(self) -> dict[str, str]:
        """Environment variables that select this server."""
        return {"PREFECT_API_URL": self.api_url, "PREFECT_API_AUTH_STRING": self.auth_string}

    def stop(self) -> None:
        """Send SIGINT, as Ctrl-C does, and wait for the exit."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=120)

    def processes(self) -> list[int]:
        """Ids of all processes with this data folder in their environment, except that of `malt up` itself."""
        mark = f"MALT_DATA_DIR={self.data_dir}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes():
                    found.append(int(entry.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self.process.pid]


def start(data_dir: Path, *options: str, **environment: str) -> Up:
    """Start `malt up`, and wait until it prints the address of the UI."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    process = subprocess.Popen(
        [MALT, "up", *options],
        cwd=PROJECT,
        env={**outside, "MALT_DATA_DIR": str(data_dir), "TMPDIR": str(data_dir.parent), "TEST_KEY": KEY, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Prefect's UI: "), line + process.stdout.read()
    return Up(process, f"{line.split()[-1]}/api", data_dir)


def pid_of(flow_run_id: str) -> int:
    """Return the process id of a running flow run."""
    mark = f"PREFECT__FLOW_RUN_ID={flow_run_id}\0".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in entry.read_bytes():
                return int(entry.parent.name)
    raise AssertionError(f"flow run {flow_run_id} has no process")


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    often = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}  # else a new schedule may wait for a minute
    up = start(tmp_path_factory.mktemp("service"), "--port", str(free_port()), **often)
    mute(up)
    yield up
    up.stop()


def mute(up: Up) -> None:
    """Switch off the automations: each failed run would start an alert run beside the rest of the test."""
    client = Prefect(up)
    client.switch_automations(on=False)
    client.http.close()


@pytest.fixture(scope="package")
def api_url(service: Up) -> str:
    """Use this server in place of the one that the other flow tests share."""
    return service.api_url


class Prefect:
    """Client of the parts of Prefect's HTTP API that its UI uses."""

    def __init__(self, service: Up) -> None:
        self.service = service
        user, _, password = service.auth_string.partition(":")
        self.http = httpx.Client(base_url=service.api_url, timeout=RUN_LIMIT_S, auth=(user, password))
        token = self.http.get("/csrf-token", params={"client": "tests"}).raise_for_status().json()["token"]
        self.http.headers.update({"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": token})

    def ask(self, method: str, path: str, body: Json = None) -> httpx.Response:
        """Send a request; repeat it while the server replies 503, which means a busy SQLite file and no effect."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while True:
            answer = self.http.request(method, path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                return answer
            time.sleep(0.2)

    def post(self, path: str, body: Json) -> httpx.Response:
        return self.ask("POST", path, body)

    def deployment(self, flow: str) -> Json:
        return self.http.get(f"/deployments/name/{flow}/{DEPLOYMENTS.get(flow, flow)}").raise_for_status().json()

    def trigger(self, flow: str, **parameters: Json) -> httpx.Response:
        """Submit a deployment's form."""
        wanted = self.deployment(flow)["id"]
        return self.post(f"/deployments/{wanted}/create_flow_run", {"parameters": parameters})

    def run(self, flow: str, **parameters: Json) -> Json:
        """Submit a deployment's form, wait for the flow run to end, and return it."""
        return self.ended(self.trigger(flow, **parameters).raise_for_status().json()["id"])

    def retry(self, flow_run_id: str) -> Json:
        """Press Retry, wait for the flow run to end again, and return it."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True}).raise_for_status()
        return self.ended(flow_run_id)

    def ended(self, flow_run_id: str) -> Json:
        deadline = time.monotonic() + RUN_LIMIT_S
        while time.monotonic() < deadline:
            flow_run = self.http.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
            if flow_run["state_type"] in ENDED:
                return flow_run
            time.sleep(0.3)
        raise AssertionError((self.service.data_dir / "prefect" / "worker.log").read_text()[-3000:])

    def artifacts(self, flow_run_id: str) -> dict[str, Json]:
        """Return a flow run's artifacts, the latest of each key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "CREATED_DESC", "limit": 200}
        left = self.post("/artifacts/filter", wanted).raise_for_status().json()
        return {artifact["key"]: artifact for artifact in reversed(left)}

    def task_runs(self, flow_run_id: str) -> list[Json]:
        wanted = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "limit": 200}
        found: list[Json] = self.post("/task_runs/filter", wanted).raise_for_status().json()
        return found

    def logs(self, flow_run_id: str) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200}
        return [line["message"] for line in self.post("/logs/filter", wanted).raise_for_status().json()]

    def switch_automations(self, *, on: bool, named: str = "") -> None:
        """Enable or disable the automations whose name contains `named`."""
        for automation in self.post("/automations/filter", {}).raise_for_status().json():
            if named in automation["name"]:
                self.ask("PATCH", f"/automations/{automation['id']}", {"enabled": on}).raise_for_status()

    def errors(self, flow_run_id: str) -> list[str]:
        """Return the error lines of a flow run's log."""
        wanted = {"logs": {"flow_run_id": {"any_": [flow_run_id]}, "level": {"ge_": 40}}, "limit": 200}
        return [line["message"] for line in self.post("/logs/filter", wanted).raise_for_status().json()]

    def open_task_runs(self, flow_run_id: str) -> list[str]:
        """Return the names of the task runs that have not ended."""
        return [each["name"] for each in self.task_runs(flow_run_id) if each["state_type"] not in ENDED]

    def state(self, flow_run_id: str) -> Json:
        return self.http.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()["state"]

    def set_state(self, flow_run_id: str, **state: Json) -> None:
        self.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state}).raise_for_status()

    def flow_runs(self, flow: str, state: str) -> list[Json]:
        """Return a deployment's runs in a state, the latest first."""
        wanted = {
            "deployments": {"id": {"any_": [self.deployment(flow)["id"]]}},
            "flow_runs": {"state": {"type": {"any_": [state]}}},
            "limit": 200,
        }
        found: list[Json] = self.post("/flow_runs/filter", wanted).raise_for_status().json()
        return found

    def numbers(self, name: str) -> list[int]:
        return version_numbers(self.service.data_dir / "datasets" / name)

    def versions(self, name: str) -> list[DatasetVersion]:
        return list_versions(self.service.data_dir / "datasets", name).versions

    def newest(self, name: str) -> DatasetVersion:
        return self.versions(name)[-1]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RUN_LIMIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.fixture
def prefect(service: Up) -> Iterator[Prefect]:
    client = Prefect(service)
    yield client
    client.http.close()


def declared(name: str, folder: Path, provider: ScriptedProvider, count: int, **changed: Json) -> RunSpec:
    """Return a spec of sums with its own seed, since all tests share the service's store."""
    spec = spec_of(provider, write_questions(folder, count)).as_config()
    for role in spec["roles"].values():
        role["seed"] = int.from_bytes(name.encode()[:6])
    return RunSpec.model_validate({**spec, "name": name, **changed})


def in_form(spec: RunSpec) -> Json:
    """Return a spec as the form sends it."""
    return json.loads(spec.model_dump_json(exclude_none=True))


class Formed(NamedTuple):
    """A spec, and the run that its form started."""

    spec: RunSpec
    run: Json


@pytest.fixture(scope="package")
def formed(service: Up, tmp_path_factory: pytest.TempPathFactory) -> Formed:
    """A run in branch tracking, with the models' key in a Secret block and answers that contain HTML and scripts."""
    client = Prefect(service)
    make_block(client, "vault-key", SECRET)
    with ScriptedProvider(key=SECRET) as provider:
        provider.script = lambda _asked, sample: f"```\n<script>alert({sample})</script>\n````\n[x](javascript:y)"
        folder = tmp_path_factory.mktemp("formed")
        spec = with_block(declared("formed", folder, provider, 1, run={"tracking": "branch"}), "vault-key")
        run = client.run("generate", spec=in_form(spec))
    client.http.close()
    assert run["state"]["message"] == "formed@v1: 1 questions complete"
    return Formed(spec, run)


def with_block(spec: RunSpec, block: str) -> RunSpec:
    """Return the spec with the roles' API key in a Secret block."""
    declared = in_form(spec)
    for role in declared["roles"].values():
        del role["api_key_env"]
        role["api_key_block"] = block
    return RunSpec.model_validate(declared)


def make_block(client: Prefect, name: str, value: str) -> None:
    """Make a Secret block as the UI does."""
    kind = client.http.get("/block_types/slug/secret").raise_for_status().json()["id"]
    wanted = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = client.post("/block_schemas/filter", wanted).raise_for_status().json()[0]["id"]
    body = {"name": name, "data": {"value": value}, "block_type_id": kind, "block_schema_id": schema}
    client.post("/block_documents/", body).raise_for_status()
