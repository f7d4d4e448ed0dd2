"""A clean place for every test: no MALT or provider settings of the machine, and a data folder of its own.

And how tests are dealt out to processes, in which order, and in whose time they run.
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
"""All is asked on this machine, in plain HTTP; and hundreds of clients each read whom they trust, 140 as a rule."""

UP_FOR_S = 1000.0
"""What a loop's clock shows as a test begins in virtual time: that of a machine counts from its start."""
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
"""Folders and files that take longest, the longest first."""
FOREIGN = ("MALT_", "OPENAI_", "ANTHROPIC_", "GROQ_", "HF_", "AWS_")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What only waits for itself is marked `virtual_time`, and does so in no time."""
    is_virtual = item.get_closest_marker("virtual_time") is not None
    return {"virtual": partial(VirtualLoop, UP_FOR_S)} if is_virtual else {"real": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without garbage collection: what they bring lives as long as the process."""
    with paused_gc():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest in one piece, so that no process has to wait for it at the end."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST)))


class ByServer(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Deals tests out to processes a file at a time, but in one piece those that share `malt up`."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name == "service" else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServer:
    return ByServer(config, log)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALT_DATA_DIR", str(tmp_path / "data"))
    yield
    close_sessions()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedProvider]:
    """A provider, and in the environment a key for it."""
    monkeypatch.setenv("TEST_KEY", "test-key-4711")
    with ScriptedProvider() as server:
        yield server
