"""The tiny model to train, and the provider that plays the first round."""

import pytest

from tests.improvement.sevens import script
from tests.providers import ScriptedProvider
from tests.training.conftest import tiny

__all__ = ["tiny"]


@pytest.fixture(autouse=True)
def sevens(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "k")
    provider.script = script
