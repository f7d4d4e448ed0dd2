"""Sessions: shared by equal settings and limits, closed at exit, and stopped for good within a run that stopped."""

import asyncio
import gc
import math
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.config.settings import Settings
from malt.errors import BudgetSpent, RunStopped, StoreLost
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session, latest_session, open_session, stop_sessions
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import Completion, CompletionRequest, Message
from malt.llm.store.samples import Store
from tests.asking import ask
from tests.mishaps import Fault
from tests.providers import ScriptedProvider

LIMITS = Limits()


def test_a_run_has_a_session_of_its_own_that_is_stopped_alone(settings: Settings) -> None:
    one, two = (open_session(settings, LIMITS, run=run) for run in ("one", "two"))
    assert one is not two
    stop_sessions("one")
    assert isinstance(one.stopped, RunStopped)
    assert two.stopped is None
    assert latest_session() is two


def test_equal_settings_and_limits_share_a_session(settings: Settings) -> None:
    assert latest_session() is None
    session = open_session(settings, LIMITS)
    assert open_session(Settings(), Limits()) is session
    assert latest_session() is session
    assert open_session(settings, Limits(max_in_flight=2)) is not session


def test_a_session_stays_stopped_for_the_run_it_stopped_in(settings: Settings) -> None:
    stopped = open_session(settings, LIMITS, run="one")
    stopped.stopped = RunStopped("the budget is spent")
    assert open_session(settings, LIMITS, run="one") is stopped


def test_another_run_starts_afresh_after_a_stop(settings: Settings) -> None:
    stopped = open_session(settings, LIMITS, run="one")
    stopped.stopped = RunStopped("the budget is spent")
    assert open_session(settings, LIMITS, run="two") is not stopped
    stopped.close()


def test_a_program_without_runs_starts_afresh_after_a_stop(settings: Settings) -> None:
    stopped = open_session(settings, LIMITS)
    stopped.stopped = RunStopped("the budget is spent")
    assert open_session(settings, LIMITS) is not stopped
    stopped.close()


def test_sessions_that_were_stopped_refuse_what_comes_later(
    settings: Settings, request_for_three: CompletionRequest, provider: ScriptedProvider
) -> None:
    session = open_session(settings, LIMITS, run="one")
    ask(session, request_for_three)
    stop_sessions()
    with pytest.raises(RunStopped, match="closed"):
        open_session(settings, LIMITS, run="one")
    with pytest.raises(RunStopped, match="closed"):
        session.run(asyncio.sleep(0))
    assert provider.request_count == 1


def test_a_stop_that_comes_before_a_run_has_begun_is_not_lost(settings: Settings) -> None:
    stop_sessions("one")
    with pytest.raises(RunStopped, match="closed"):
        open_session(settings, LIMITS, run="one")
    assert open_session(settings, LIMITS, run="two").stopped is None


def test_a_process_that_is_stopped_opens_no_session_any_more(settings: Settings) -> None:
    stop_sessions()
    with pytest.raises(RunStopped, match="closed"):
        open_session(settings, LIMITS, run="one")


def test_a_process_keeps_nothing_of_the_runs_that_have_ended(settings: Settings) -> None:
    session = weakref.ref(open_session(settings, LIMITS, run="one"))
    stop_sessions("one")
    gc.collect()
    assert session() is None


def test_stopping_waits_for_requests_in_flight_and_stores_them(
    settings: Settings, request_for_three: CompletionRequest, provider: ScriptedProvider
) -> None:
    provider.latency_s = 0.5
    session = open_session(settings, LIMITS, run="one")
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask, session, request_for_three)
        while provider.request_count == 0:
            assert not asking.done(), asking.result()
            time.sleep(0.01)
        stop_sessions("one")
        assert len(asking.result()) == 3
    assert len(ask(open_session(settings, LIMITS, run="two"), request_for_three)) == 3
    assert provider.request_count == 1


def test_closing_twice_and_from_two_threads_is_closing_once(settings: Settings) -> None:
    session = open_session(settings, LIMITS)
    closers = [threading.Thread(target=session.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    session.close()
    assert isinstance(session.stopped, RunStopped)


def test_a_store_that_is_removed_in_mid_run_ends_the_asking_and_loses_nothing(
    settings: Settings, provider: ScriptedProvider
) -> None:
    model = ModelSpec(model="openai/m", api_base=provider.url)
    requests = [CompletionRequest(Role.GENERATOR, model, (Message("user", f"{n} + 1"),), f"q{n}") for n in range(200)]
    provider.holds_from = 40
    session = Session(settings, Limits(max_in_flight=4))
    complete = make_completer(session, [request.question_id for request in requests])

    async def ask_all() -> list[Sequence[Completion] | BaseException]:
        work = [asyncio.ensure_future(complete(request)) for request in requests]
        while len(provider.sent) < 20:  # noqa: ASYNC110 - the provider has a loop of its own
            await asyncio.sleep(0.01)
        for file in settings.data_dir.glob("store.db*"):
            file.unlink()
        provider.holds_from = math.inf
        return await asyncio.gather(*work, return_exceptions=True)

    ends = asyncio.run(ask_all())
    session.close()
    asked = provider.request_count
    assert {type(end) for end in ends if isinstance(end, BaseException)} == {StoreLost}
    assert asked < len(requests)
    [rescued] = settings.data_dir.glob("store.db.rescued-*[0-9]")
    with Store(f"sqlite:///{rescued}") as copy:
        answered = [row for row in copy.rows([request.question_id for request in requests]).values() if row.response]
    assert len(answered) == asked


@pytest.mark.parametrize("text", ['{"choices": []}', "<html>", '{"error": "odd"}', '{"deep": ' + "[" * 5000])
def test_unusable_replies_at_their_worst_case_do_not_exceed_the_cap(
    settings: Settings, provider: ScriptedProvider, text: str
) -> None:
    provider.faults = lambda _asked: Fault(text=text)
    model = ModelSpec(model="openai/m", api_base=provider.url, max_tokens=1000)
    quick = Policy(backoff_s=0.001, backoff_max_s=0.002)
    session = Session(settings, Limits(max_tokens_total=6000), Endpoints(quick))
    requests = [CompletionRequest(Role.GENERATOR, model, (Message("user", f"{n} + 1"),), f"q{n}") for n in range(20)]
    complete = make_completer(session, [request.question_id for request in requests])

    async def ask_all() -> list[Sequence[Completion] | BaseException]:
        return await asyncio.gather(*map(complete, requests), return_exceptions=True)

    ends = asyncio.run(ask_all())
    session.close()
    assert BudgetSpent in {type(end) for end in ends}
    assert provider.request_count * 1000 <= 6000  # at most, if each was billed in full


def test_a_process_that_is_stopped_for_a_while_takes_no_answer_for_timed_out(provider: ScriptedProvider) -> None:
    provider.latency_s = 0.3
    script = f"""
import asyncio
from malt.config.spec import ModelSpec, Role
from malt.llm.provider import call
from malt.llm.request import CompletionRequest, Message

async def ask():
    model = ModelSpec(model="openai/m", api_base="{provider.url}", timeout_s=1.5)
    patient = model.model_copy(update={{"timeout_s": 60.0}})
    await call.send(CompletionRequest(Role.GENERATOR, patient, (Message("user", "2 + 3"),), "warm"), 0, 1)
    print("ready", flush=True)
    await call.send(CompletionRequest(Role.GENERATOR, model, (Message("user", "2 + 3"),), "q"), 0, 1)
    print("answered", flush=True)
    await call.close()

asyncio.run(ask())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            wait_until(lambda: provider.request_count == 2)
            process.send_signal(signal.SIGSTOP)
            time.sleep(3.0)
            wait_until(lambda: len(provider.sent) == 2)
            process.send_signal(signal.SIGCONT)
            assert process.communicate(timeout=60)[0] == "answered\n"
        finally:
            process.kill()


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)
