"""A clean place for every test: no MALT or provider settings of the machine, and a data folder of its own."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import hypothesis
import pytest

from malt.llm.session import close_sessions
from malt.settings import Settings
from tests.providers import ScriptedProvider
from tests.virtual_time import VirtualLoop

hypothesis.settings.register_profile("malt", deadline=None, derandomize=True)  # the same cases on every machine
hypothesis.settings.load_profile("malt")

TESTS = Path(__file__).parent
UP_FOR_S = 1000.0
"""What a loop's clock shows as a test begins in virtual time: that of a machine counts from its start."""
FOREIGN = ("MALT_", "OPENAI_", "ANTHROPIC_", "GROQ_", "HF_", "AWS_")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What only waits for itself is marked `virtual_time`, and does so in no time."""
    is_virtual = item.get_closest_marker("virtual_time") is not None
    return {"virtual": partial(VirtualLoop, UP_FOR_S)} if is_virtual else {"real": asyncio.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares an expensive fixture, where tests are dealt out to several processes."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(shared_by(item.path)))


def shared_by(path: Path) -> str:
    """Name the group of a test: its file, or the folder whose tests share a server."""
    return path.stem if path.parent == TESTS else path.parent.name


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
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as server:
        yield server
