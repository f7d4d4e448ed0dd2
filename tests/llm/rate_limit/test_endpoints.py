"""Endpoints: one limiter for each model, address and key in a process, shared by all sessions."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.config.settings import Settings
from malt.errors import EndpointDown
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session, open_session
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import Completion, CompletionRequest, Message
from tests.providers import ScriptedProvider


@pytest.fixture
def request_for_one(provider: ScriptedProvider) -> CompletionRequest:
    model = ModelSpec(model="openai/m", api_base=provider.url, api_key_env="TEST_KEY")
    return CompletionRequest(Role.GENERATOR, model, (Message("user", "What is 2 + 3?"),), "q")


async def ask_many(session: Session, request: CompletionRequest, prefix: str) -> Sequence[Sequence[Completion]]:
    requests = [replace(request, question_id=f"{prefix}{number}") for number in range(20)]
    complete = make_completer(session, [each.question_id for each in requests])
    return await asyncio.gather(*(complete(each) for each in requests))


def test_two_sessions_together_stay_inside_the_lower_of_their_limits(
    settings: Settings, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    provider.latency_s = 0.01
    wide, narrow = open_session(settings, Limits()), open_session(settings, Limits(max_in_flight=2))
    assert wide.endpoint(request_for_one.model) is narrow.endpoint(request_for_one.model)

    async def both() -> None:
        await asyncio.gather(ask_many(wide, request_for_one, "a"), ask_many(narrow, request_for_one, "b"))

    wide.run(both())
    assert provider.max_in_flight == 2


def test_a_session_that_is_closed_limits_no_other(
    settings: Settings, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    provider.latency_s = 0.05
    wide, narrow = open_session(settings, Limits()), open_session(settings, Limits(max_in_flight=1))
    narrow.run(ask_many(narrow, replace(request_for_one, messages=(Message("user", "What is 1 + 1?"),)), "a"))
    wide.endpoint(request_for_one.model)
    narrow.close()
    wide.run(ask_many(wide, request_for_one, "b"))
    assert provider.max_in_flight > 1


def test_another_key_or_address_is_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "a-key-4711")
    monkeypatch.setenv("KEY_A_TOO", "a-key-4711")
    monkeypatch.setenv("KEY_B", "b-key-4711")
    model, known = ModelSpec(model="openai/m", api_base="http://a/v1", api_key_env="KEY_A"), Endpoints()

    def enter(**changed: str) -> object:
        return known.enter(model.model_copy(update=changed), Limits())

    assert enter() is enter(api_key_env="KEY_A_TOO")
    assert len({id(enter()), id(enter(api_key_env="KEY_B")), id(enter(api_base="http://b/v1"))}) == 3


def test_an_endpoint_that_was_given_up_starts_afresh_for_the_next_session(
    settings: Settings, request_for_one: CompletionRequest
) -> None:
    shared = Endpoints(Policy(never_up_after_s=0.05, probe_max_s=0.01, backoff_s=0.01))
    model = request_for_one.model.model_copy(update={"api_base": "http://127.0.0.1:9/v1"})
    sessions = [Session(settings, Limits(), shared) for _ in range(2)]
    for session in sessions:
        with pytest.raises(EndpointDown):
            session.run(ask_many(session, replace(request_for_one, model=model), "q"))
    assert sessions[0].endpoint(model) is not sessions[1].endpoint(model)
    for session in sessions:
        session.close()


def test_requests_a_minute_are_learned_from_response_headers(
    settings: Settings, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    provider.headers = {"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "1000000"}
    session = open_session(settings, Limits())
    session.run(ask_many(session, request_for_one, "a"))
    learned, began = provider.request_count, time.monotonic()
    session.run(ask_many(session, replace(request_for_one, messages=(Message("user", "What is 1 + 1?"),)), "b"))
    asked = provider.requests[learned:]
    assert asked[-1].at - began >= (len(asked) - 1) / (3000 / 60) - 0.05
