"""Fixtures for the tests of sessions and completers."""

import pytest

from malt.config.roles import ModelSpec, Role
from malt.llm.request import CompletionRequest, Message
from tests.providers import ScriptedProvider


@pytest.fixture
def request_for_three(provider: ScriptedProvider) -> CompletionRequest:
    model = ModelSpec(model="openai/m", api_base=provider.url, api_key_env="TEST_KEY", seed=7)
    return CompletionRequest(Role.GENERATOR, model, (Message("user", "What is 2 + 3?"),), "q1", "", 3)
