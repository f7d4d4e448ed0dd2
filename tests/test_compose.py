"""compose.yaml and the Dockerfile agree with this repository: paths, extras, the work pool, settings that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prefect.settings import get_current_settings

from malt.config.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    declared: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return declared["services"]  # type: ignore[no-any-return]


def environment_names(services: dict[str, Any], prefix: str) -> set[str]:
    return {name for service in services.values() for name in service.get("environment", {}) if name.startswith(prefix)}


def test_every_file_that_the_image_copies_exists_and_reaches_the_build() -> None:
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for source in line.split()}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_nothing_runs_as_root() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["1000"]


def test_workers_poll_the_pool_that_is_made_and_deployed_to(services: dict[str, Any]) -> None:
    pool = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["work_pool"]["name"]
    assert services["worker"]["command"][-2:] == ["--pool", pool]
    assert f"work-pool create {pool} " in services["deployments"]["command"][-1]


def test_settings_of_malt_exist(services: dict[str, Any]) -> None:
    named = environment_names(services, "MALT_") | set(re.findall(r"MALT_\w+", DOCKERFILE))
    assert {"MALT_DATA_DIR", "MALT_STORE_URL"} <= named <= {f"MALT_{field.upper()}" for field in Settings.model_fields}


def test_settings_of_prefect_exist(services: dict[str, Any]) -> None:
    known = get_current_settings().to_environment_variables(exclude_unset=False)
    listed_once_set = {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"}
    named = environment_names(services, "PREFECT_")
    assert named
    assert named <= {*known, *listed_once_set}


def test_no_port_is_open_beyond_this_machine(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_password_is_written_down(services: dict[str, Any]) -> None:
    values = [str(value) for service in services.values() for value in service.get("environment", {}).values()]
    assert all("${POSTGRES_PASSWORD:?" in value for value in values if "POSTGRES" in value or "malt:" in value)
    assert services["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_the_server_asks_for_a_string_that_its_clients_have_and_answers_its_own_pages(services: dict[str, Any]) -> None:
    server = services["server"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == "${PREFECT_AUTH_STRING:?}"
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    clients = (services[name]["environment"] for name in ("deployments", "worker"))
    assert all(client["PREFECT_API_AUTH_STRING"].startswith("${PREFECT_AUTH_STRING:?") for client in clients)
