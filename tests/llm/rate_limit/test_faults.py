"""All faults of an endpoint, from the HTTP response to the end of the run: the table in faults.py."""

import time
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import pytest

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.config.settings import Settings
from malt.errors import AccountEmpty, ConfigError, EndpointDown, MaltError
from malt.llm.client.session import Session
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import CompletionRequest, Message, RequestFailed
from tests import mishaps
from tests.asking import ask
from tests.mishaps import Fault
from tests.providers import ScriptedProvider

QUICK = Policy(
    attempts=2,
    backoff_s=0.002,
    backoff_max_s=0.01,
    pause_s=0.01,
    pause_max_s=0.02,
    down_after_s=0.5,
    never_up_after_s=0.3,
    limited_after_s=1.0,
    probe_max_s=0.02,
)
"""The production policy, about a hundred times faster."""


class Policed(Enum):
    """Treatment of a permanent fault: the error, the exit code, and the number of attempts."""

    WAITED_FOR = (EndpointDown, 3, None)
    ASKED_AGAIN = (RequestFailed, 1, QUICK.attempts)
    BRANCH_FAILS = (RequestFailed, 1, 1)
    RUN_STOPS = (AccountEmpty, 3, 1)
    CONFIG_IS_WRONG = (ConfigError, 2, 1)


class Case(NamedTuple):
    """A fault and its treatment."""

    fault: Fault
    policy: Policed


CASES = {
    "429": Case(mishaps.rate_limited(), Policed.WAITED_FOR),
    "429 with Retry-After": Case(mishaps.rate_limited(0.05), Policed.WAITED_FOR),
    "500": Case(mishaps.server_error(500), Policed.ASKED_AGAIN),
    "503": Case(mishaps.server_error(503), Policed.ASKED_AGAIN),
    "reset": Case(mishaps.reset(), Policed.ASKED_AGAIN),
    "reset in mid-body": Case(mishaps.cut_short(), Policed.ASKED_AGAIN),
    "hang": Case(mishaps.hang(), Policed.ASKED_AGAIN),
    "slow drip": Case(mishaps.drip(), Policed.ASKED_AGAIN),
    "a page instead of JSON": Case(mishaps.not_json(), Policed.ASKED_AGAIN),
    "JSON of another kind": Case(Fault(text='{"object": "list"}'), Policed.ASKED_AGAIN),
    "empty choices": Case(mishaps.no_choices(), Policed.ASKED_AGAIN),
    "content filter": Case(mishaps.prompt_filtered(), Policed.BRANCH_FAILS),
    "context overflow": Case(mishaps.context_overflow(), Policed.BRANCH_FAILS),
    "bad request": Case(mishaps.bad_request(), Policed.BRANCH_FAILS),
    "wrong key": Case(mishaps.wrong_key(), Policed.CONFIG_IS_WRONG),
    "no access": Case(mishaps.forbidden(), Policed.CONFIG_IS_WRONG),
    "unknown model": Case(mishaps.unknown_model(), Policed.CONFIG_IS_WRONG),
    "no credit": Case(mishaps.payment_required(), Policed.RUN_STOPS),
    "quota spent": Case(mishaps.quota_spent(), Policed.RUN_STOPS),
}

of_every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
of_what_may_pass = pytest.mark.parametrize(
    "fault",
    [case.fault for case in CASES.values() if case.policy in {Policed.WAITED_FOR, Policed.ASKED_AGAIN}],
    ids=[name for name, case in CASES.items() if case.policy in {Policed.WAITED_FOR, Policed.ASKED_AGAIN}],
)


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    opened = Session(settings, Limits(), Endpoints(QUICK))
    yield opened
    opened.close()


@pytest.fixture
def request_for_one(provider: ScriptedProvider) -> CompletionRequest:
    model = ModelSpec(model="openai/m", api_base=provider.url, api_key_env="TEST_KEY", timeout_s=1.0)
    return CompletionRequest(Role.GENERATOR, model, (Message("user", "What is 2 + 3?"),), "q1")


@of_every_case
def test_a_fault_that_stays_ends_as_its_policy_says(
    session: Session, provider: ScriptedProvider, request_for_one: CompletionRequest, case: Case
) -> None:
    ends_as, exit_code, times = case.policy.value
    provider.faults = lambda _asked: case.fault
    with pytest.raises(MaltError) as raised:
        ask(session, request_for_one)
    assert (type(raised.value), raised.value.exit_code) == (ends_as, exit_code)
    assert times is None or provider.request_count == times
    assert "\n" not in str(raised.value)


@of_every_case
def test_only_faults_that_every_request_would_meet_stop_the_run(
    session: Session, provider: ScriptedProvider, request_for_one: CompletionRequest, case: Case
) -> None:
    provider.faults = mishaps.when(lambda asked: "2 + 3" in asked.prompt, case.fault)
    with pytest.raises(MaltError):
        ask(session, request_for_one)
    other = replace(request_for_one, messages=(Message("user", "What is 4 + 5?"),), question_id="q2")
    asked = provider.request_count
    if case.policy in {Policed.ASKED_AGAIN, Policed.BRANCH_FAILS}:
        assert "Final Answer: " in ask(session, other)[0].text
    else:
        with pytest.raises(MaltError):
            ask(session, other)
        assert provider.request_count == asked


@of_what_may_pass
def test_a_fault_that_passes_costs_time_alone(
    session: Session, provider: ScriptedProvider, request_for_one: CompletionRequest, fault: Fault
) -> None:
    provider.faults = mishaps.at_first(QUICK.attempts - 1, fault)
    assert "Final Answer: " in ask(session, request_for_one)[0].text
    assert provider.request_count == QUICK.attempts


def test_a_storm_of_429s_uses_up_no_attempt(
    settings: Settings, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    provider.faults = mishaps.at_first(3 * QUICK.attempts, mishaps.rate_limited())
    session = Session(settings, Limits(), Endpoints(replace(QUICK, limited_after_s=120)))
    assert "Final Answer: " in ask(session, request_for_one)[0].text
    session.close()


def test_a_filtered_reply_is_an_answer_and_not_asked_for_again(
    session: Session, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    provider.faults = lambda _asked: mishaps.reply_filtered()
    assert [ask(session, request_for_one)[0].finish_reason for _ in range(2)] == ["content_filter"] * 2
    assert provider.request_count == 1


def test_an_endpoint_nobody_listens_at_ends_the_run_within_its_time_and_keeps_what_was_paid_for(
    session: Session, provider: ScriptedProvider, request_for_one: CompletionRequest
) -> None:
    paid = ask(session, request_for_one)
    nowhere = request_for_one.model.model_copy(update={"api_base": "http://127.0.0.1:9/v1"})
    started = time.monotonic()
    with pytest.raises(EndpointDown, match="What was paid for is stored"):
        ask(session, replace(request_for_one, model=nowhere, question_id="q2"))
    assert QUICK.never_up_after_s <= time.monotonic() - started
    assert [completion.text for completion in ask(session, request_for_one)] == [one.text for one in paid]
    assert provider.request_count == 1
