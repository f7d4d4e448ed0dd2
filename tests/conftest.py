"""Isolation of every test: none of the machine's MALT or provider settings, and a data folder of its own.

Also the order of the tests, their distribution over processes, and the event loop that they run on.
"""

import asyncio
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from malt.config.settings import Settings
from malt.llm.client.session import close_sessions
from malt.processes import paused_gc
from tests.providers import ScriptedProvider
from tests.virtual_time import VirtualLoop

# the same cases on every machine, however slow
hypothesis.settings.register_profile(
    "malt", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("malt")

os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))
"""Tests only talk plain HTTP to loopback. An empty CA file keeps hundreds of HTTP clients from each loading the
system's 140 certificates."""

CLOCK_START_S = 1000.0
"""Start of the clock in virtual time: a real monotonic clock is not at 0 either when a test starts."""
LONGEST = (
    "service",
    "test_readme.py",
    "flows",
    "test_planted_key.py",
    "test_kills.py",
    "test_private_prefect.py",
    "test_access.py",
    "test_wheel.py",
    "test_batched_crashes.py",
    "test_batch_mode.py",
    "test_docs.py",
)
"""Slowest folders and files, slowest first."""
MACHINE_PREFIXES = ("MALT_", "OPENAI_", "ANTHROPIC_", "GROQ_", "HF_", "AWS_")
"""Prefixes of environment variables that no test may inherit from the machine."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests marked `virtual_time` on a loop that skips waits: such a test waits for nothing outside its process."""
    is_virtual = item.get_closest_marker("virtual_time") is not None
    return {"virtual": partial(VirtualLoop, CLOCK_START_S)} if is_virtual else {"real": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without garbage collection: imported modules live as long as the process."""
    with paused_gc():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slowest files first, so that no process ends long after the others."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST)))


class ByServer(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process whole files, and all tests that share one `malt up` to the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "service" else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServer:
    return ByServer(config, log)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(MACHINE_PREFIXES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "data"))
    yield
    close_sessions()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedProvider]:
    """Scripted provider, with its API key in the environment."""
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    with ScriptedProvider() as server:
        yield server
