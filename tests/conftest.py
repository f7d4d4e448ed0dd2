"""A clean place for every test: no MALT or provider settings of the machine, and a data folder of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from malt.llm.session import close_sessions
from malt.settings import Settings
from tests.providers import ScriptedProvider

hypothesis.settings.register_profile("malt", deadline=None, derandomize=True)  # the same cases on every machine
hypothesis.settings.load_profile("malt")

FOREIGN = ("MALT_", "OPENAI_", "ANTHROPIC_", "GROQ_", "HF_", "AWS_")


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
