"""Prefect's own server, started once for the tests that run flows, and the `malt` command run against it."""

import gc
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from malt.cli.main import exit_code
from malt.engine.build import RunSummary
from malt.hosting.private_prefect import PRIVATE

# Prefect reads these when it is imported, which happens when the tests are collected.
HOME = os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="malt-tests-prefect-")
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
os.environ["PREFECT_API_AUTH_STRING"] = os.environ["PREFECT_SERVER_API_AUTH_STRING"] = "malt:tests"


class Ran(NamedTuple):
    """Exit code, summary and stderr of a `malt run --json`."""

    code: int
    summary: RunSummary
    stderr: str


Malt = Callable[..., Ran]


def beside_progress(stderr: str) -> str:
    """Return stderr without empty lines and without the progress lines of a slow run."""
    return "\n".join(line for line in stderr.splitlines() if line and " requests; limited by: " not in line)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)  # a server that is shutting down may still write there


@pytest.fixture(scope="package")
def api_url() -> Iterator[str]:
    """API URL of a server that runs for all tests of this folder."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    from malt.hosting.prefect_server import cached_database, copy_database

    folder = tempfile.mkdtemp()  # the harness removes it
    copy_database(cached_database(), Path(folder, "prefect-test.db"))  # saves the server 3 s of CPU
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr("prefect.testing.utilities.mkdtemp", lambda: folder)
        for name, value in PRIVATE.items():
            environment.setenv(name, value)
        with prefect_test_harness(server_startup_timeout=600):
            yield PREFECT_API_URL.value()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # closes the last of the sockets below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prefect's clients leave sockets to the server for the garbage collector to close."""
    for item in items:
        if "flows" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(autouse=True)
def reports_to_prefect(api_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api_url)
    monkeypatch.setenv("TEST_KEY", "test-key-4711")


@pytest.fixture
def malt(capfd: pytest.CaptureFixture[str]) -> Malt:
    """Run a command with `--json` in this process."""

    def run(*arguments: object) -> Ran:
        code = exit_code([*map(str, arguments), "--json"])
        printed = capfd.readouterr()
        return Ran(code, RunSummary.model_validate(json.loads(printed.out)), beside_progress(printed.err))

    return run
