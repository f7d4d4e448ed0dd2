"""Completers: the store first, then the endpoint; siblings in one request; nothing is requested twice."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Literal

import pytest

from malt.config.limits import Limits
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.errors import ConfigError, RunStopped, StoreError
from malt.llm.budget import Usage
from malt.llm.client.completers import group_runs, make_completer, make_store_completer
from malt.llm.client.session import Session, open_session
from malt.llm.request import Completion, CompletionRequest, RequestFailed
from tests import mishaps
from tests.asking import ask
from tests.providers import ScriptedProvider


@pytest.fixture
def session(settings: Settings) -> Session:
    return open_session(settings, Limits())


def texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def test_siblings_are_one_request(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    completions = ask(session, request_for_three)
    assert provider.request_count == 1
    assert len(set(texts(completions))) == 3
    assert [completion.key for completion in completions] == request_for_three.keys


def test_asking_again_costs_nothing(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    first = ask(session, request_for_three)
    again = ask(session, request_for_three)
    assert provider.request_count == 1
    assert texts(first) == texts(again)
    assert all(completion.cached for completion in again)


def test_more_samples_ask_only_for_the_new_ones(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    three = ask(session, request_for_three)
    five = ask(session, replace(request_for_three, count=5))
    assert [asked.count for asked in provider.requests] == [3, 2]
    assert texts(five)[:3] == texts(three)
    assert len(set(texts(five))) == 5


def test_equal_requests_at_the_same_time_are_asked_once(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    complete = make_completer(session, ["q1"])

    async def at_once() -> list[Sequence[Completion]]:
        return await asyncio.gather(*(complete(request_for_three) for _ in range(5)))

    assert len({tuple(texts(completions)) for completions in session.run(at_once())}) == 1
    assert provider.request_count == 1


@pytest.mark.parametrize(("siblings", "requests"), [("refused", 4), ("ignored", 3)])
def test_siblings_that_a_provider_does_not_give_are_asked_for_singly(
    session: Session,
    provider: ScriptedProvider,
    request_for_three: CompletionRequest,
    siblings: Literal["refused", "ignored"],
    requests: int,
) -> None:
    provider.siblings = siblings
    assert len(set(texts(ask(session, request_for_three)))) == 3
    assert provider.request_count == requests


def test_a_provider_that_refused_siblings_is_not_asked_for_them_again(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    provider.siblings = "refused"
    ask(session, request_for_three)
    ask(session, replace(request_for_three, question_id="q2"))
    assert [asked.count for asked in provider.requests] == [3, 1, 1, 1, 1, 1, 1]


def test_a_failed_request_says_why_and_is_asked_again_next_time(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    provider.faults = lambda _asked: mishaps.context_overflow()
    with pytest.raises(RequestFailed, match="maximum context length"):
        ask(session, request_for_three)
    with pytest.raises(RequestFailed, match="maximum context length"):
        session.run(make_store_completer(session.store, ["q1"])(request_for_three))
    provider.faults = None
    assert len(ask(session, request_for_three)) == 3


def test_received_siblings_are_kept_when_another_fails(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    provider.siblings = "ignored"
    provider.faults = mishaps.when(lambda asked: asked.number == 1, mishaps.context_overflow())
    with pytest.raises(RequestFailed) as failure:
        ask(session, request_for_three)
    assert len(failure.value.completed) == 2
    provider.faults = None
    assert len(ask(session, request_for_three)) == 3
    assert provider.request_count == 4


def test_a_wrong_key_stops_everything_at_once(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    provider.key = "another"
    with pytest.raises(ConfigError, match="TEST_KEY"):
        ask(session, request_for_three)
    with pytest.raises(ConfigError):
        ask(session, replace(request_for_three, question_id="q2"))
    assert provider.request_count == 1


def test_recall_sends_no_request(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    with pytest.raises(RequestFailed, match="not in the store"):
        session.run(make_store_completer(session.store, ["q1"])(request_for_three))
    assert provider.request_count == 0


def test_a_role_that_may_not_be_asked_is_only_recalled(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    complete = make_completer(session, ["q1"], asks={Role.EVALUATOR})
    with pytest.raises(RequestFailed, match="not in the store"):
        session.run(complete(request_for_three))
    assert provider.request_count == 0


def test_a_run_continues_with_samples_that_another_stored_meanwhile(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    early = make_completer(session, ["q1"])
    first = ask(session, request_for_three)
    provider.script = lambda _asked, sample: f"another text {sample}"
    assert texts(session.run(early(request_for_three))) == texts(first)


def test_a_store_that_cannot_be_written_stops_all_asking(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest, settings: Settings
) -> None:
    with closing(sqlite3.connect(settings.data_dir / "store.db")) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON samples BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(StoreError, match="disk full"):
        ask(session, request_for_three)
    with pytest.raises(StoreError, match="disk full"):
        ask(session, replace(request_for_three, question_id="q2"))
    assert provider.request_count == 1


def test_usage_is_counted_once(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    ask(session, request_for_three)
    ask(session, request_for_three)
    used = session.tally.roles[Role.GENERATOR]
    assert (used.requests, used.completions, used.cached_completions) == (1, 3, 3)
    assert used.prompt_tokens > 0
    assert used.completion_tokens > 0


def test_an_unknown_cost_is_never_zero() -> None:
    usage = Usage(cost_usd=1.0)
    usage.add(Usage(cost_usd=None))
    usage.add(Usage(cost_usd=1.0))
    assert usage.cost_usd is None


def test_a_closed_session_stores_requests_in_flight(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest, settings: Settings
) -> None:
    provider.latency_s = 0.3

    async def ask_and_leave() -> None:
        task = asyncio.create_task(session.ask(request_for_three, 0, 3, session.tally))
        while not provider.requests:  # noqa: ASYNC110 - the provider has a loop of its own
            await asyncio.sleep(0.01)
        task.cancel()

    session.run(ask_and_leave())
    session.close()
    reopened = open_session(settings, Limits())
    assert len(ask(reopened, request_for_three)) == 3
    assert provider.request_count == 1


def test_a_closed_session_asks_nothing_more(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest
) -> None:
    session.stopped = RunStopped("enough")
    with pytest.raises(RunStopped, match="enough"):
        ask(session, request_for_three)
    assert provider.request_count == 0


def test_sessions_share_their_connections_and_close_in_any_order(
    session: Session, provider: ScriptedProvider, request_for_three: CompletionRequest, settings: Settings
) -> None:
    other = open_session(settings, Limits(max_in_flight=2))
    ask(session, request_for_three)
    ask(other, replace(request_for_three, question_id="q2"))
    session.close()
    assert len(ask(other, replace(request_for_three, question_id="q3"))) == 3
    other.close()
    assert provider.request_count == 3


@pytest.mark.parametrize(
    ("numbers", "runs"), [([], []), ([0, 1, 2], [(0, 3)]), ([3], [(3, 1)]), ([0, 2, 3, 7], [(0, 1), (2, 2), (7, 1)])]
)
def test_missing_samples_are_grouped_into_runs(numbers: list[int], runs: list[tuple[int, int]]) -> None:
    assert group_runs(numbers) == runs


def test_an_answer_that_was_damaged_in_the_store_is_named(
    session: Session, request_for_three: CompletionRequest
) -> None:
    ask(session, request_for_three)
    with closing(sqlite3.connect(str(session.store.url).removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE samples SET response = '{' WHERE sample = 1")
        connection.commit()
    with pytest.raises(StoreError, match=rf"answer {request_for_three.keys[1]} to question 'q1' is damaged.*delete"):
        ask(session, request_for_three)
