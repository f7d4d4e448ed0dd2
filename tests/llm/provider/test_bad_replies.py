"""All kinds of replies of a provider, over real HTTP: how each request ends, and that a later run continues.

A case in cases/bad_replies.jsonl has the reply (a whole body, or the differences from a good one), and the end:
the request is answered, its branch fails, it waits, or the run stops.
"""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from malt.config.limits import Limits
from malt.config.roles import ModelSpec, Role
from malt.config.settings import Settings
from malt.errors import AccountEmpty, ConfigError, EndpointDown, MaltError
from malt.llm.client.completers import make_completer
from malt.llm.client.session import Session
from malt.llm.provider import call
from malt.llm.rate_limit.limiter import Endpoints
from malt.llm.rate_limit.policy import Policy
from malt.llm.request import Completion, CompletionRequest, Message, RequestFailed
from tests.mishaps import Fault
from tests.postgres import postgres as postgres
from tests.providers import ScriptedProvider

Case = dict[str, Any]

CASES: list[Case] = [
    json.loads(line) for line in (Path(__file__).parents[2] / "cases/bad_replies.jsonl").read_text().splitlines()
]
QUICK = Policy(
    attempts=2,
    backoff_s=0.002,
    backoff_max_s=0.01,
    pause_s=0.01,
    pause_max_s=0.02,
    down_after_s=0.5,
    never_up_after_s=0.3,
    limited_after_s=0.2,
    probe_max_s=0.02,
)
"""The production policy, about a hundred times faster."""
BOUND_S = 120.0
"""Limit of a case in seconds; the slowest takes 1.5 s on an idle machine."""
KEY = "test-key-4711"
ENDS = {"failed": RequestFailed, "waits": EndpointDown, "stops": AccountEmpty, "config": ConfigError}
ANSWER, QUESTION = "Final Answer: 5", "What is 2 + 3? "


def body_of(case: Case) -> dict[str, Any]:
    """Return a good answer's body with the changes of the case."""
    choice = case.get("choice") or {
        "index": 0,
        "message": {"role": "assistant", "content": ANSWER, **case.get("message", {})},
        "finish_reason": "stop",
    }
    usage = case.get("usage", {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17})
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return {name: value for name, value in {**body, **case.get("top", {})}.items() if value != "-"}


def text_of(case: Case) -> str:
    """Return the body as text, with JSON that Python would not write if the case asks for it."""
    whole = json.dumps(case.get("body") or body_of(case))
    good = whole
    if "raw_content" in case:
        whole = whole.replace(ANSWER, case["raw_content"])
    if "raw_model" in case:
        whole = whole.replace('"model": "m"', f'"model": "{case["raw_model"]}"')
    if "raw_reasoning" in case:
        whole = whole.replace('"role":', f'"reasoning_content": "{case["raw_reasoning"]}", "role":')
    if "raw_usage_cost" in case:
        whole = whole.replace('"prompt_tokens":', f'"cost": {case["raw_usage_cost"]}, "prompt_tokens":')
    if "raw_top" in case:
        whole = f"{{{case['raw_top']}, {whole[1:]}"
    if "nested" in case:
        whole = f'{{"deep": {"[" * case["nested"]}{"]" * case["nested"]}, {whole[1:]}'
    if "padded" in case:
        whole += " " * case["padded"]
    if "large" in case:
        whole = whole.replace(ANSWER, "x" * case["large"])
    if "filled" in case:
        whole = "x" * case["filled"]
    return str(case.get("body_text", whole)).replace("{body}", good)


def fault_of(case: Case) -> Fault:
    """Return the provider's reply in a case."""
    headers = {"Content-Type": "application/json", **case.get("headers", {})}
    if "action" in case:
        return Fault(case["action"])
    data = bytes.fromhex(case["data"]) if "data" in case else text_of(case).encode("utf-8", "surrogatepass")
    if "gzip" in case:
        data = gzip.compress(data.replace(ANSWER.encode(), (ANSWER + " " * case["gzip"]).encode()), 1)
        headers["Content-Encoding"] = "gzip"
    return Fault(status=case.get("status", 200), data=data, headers=headers)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedProvider]:
    call.warm_up()  # keeps the import of LiteLLM out of the first case
    with ScriptedProvider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def request_for(server: ScriptedProvider, case: Case) -> CompletionRequest:
    model = ModelSpec(
        model="openai/m",
        api_base=server.url,
        api_key_env="TEST_KEY",
        timeout_s=0.5 if "action" in case else 10,
        max_tokens=100,
    )
    return CompletionRequest(Role.GENERATOR, model, (Message("user", QUESTION + case["name"]),), case["name"])


@contextmanager
def run_of_its_own(settings: Settings) -> Iterator[Session]:
    session = Session(settings, Limits(max_tokens_total=10**6), Endpoints(QUICK))
    try:
        yield session
    finally:
        session.close()


Run = Callable[[], AbstractContextManager[Session]]
"""Opens the session of a run."""


def is_plain(case: Case) -> bool:
    """Whether a case only yields a text, so that its run can be shared with other cases."""
    return case["ends"] == "answered" and not {"large", "gzip", "headers", "usage", "raw_usage_cost"} & case.keys()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Run]]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with run_of_its_own(settings) as one, run_of_its_own(settings) as later:
        yield lambda: nullcontext(one), lambda: nullcontext(later)


@pytest.fixture
def runs(settings: Settings, shared: tuple[Run, Run], case: Case) -> tuple[Run, Run]:
    """A run and a later one over one store: shared by all plain cases, or the case's own."""
    own = partial(run_of_its_own, settings)
    return shared if is_plain(case) else (own, own)


def ask(server: ScriptedProvider, run: Run, case: Case) -> Completion:
    with run() as session:
        return session.run(make_completer(session, [case["name"]])(request_for(server, case)))[0]


def goes_on_after(server: ScriptedProvider, one: Run, later: Run, case: Case) -> bool:
    """Play a case and check its end; then end the fault, and return whether the later run has its answer."""
    fault = fault_of(case)
    server.faults = lambda _asked: fault
    before, started = server.request_count, time.monotonic()
    end: Completion | MaltError
    try:
        end = ask(server, one, case)
    except MaltError as error:
        end = error
    assert time.monotonic() - started < BOUND_S
    tries = server.request_count - before
    check_end(case, end, tries)
    server.faults = None
    again, asked = ask(server, later, case), server.request_count
    if isinstance(end, Completion):  # the answer is stored, so no request is sent
        return (again.text, asked) == (end.text, before + tries)
    return "Final Answer:" in again.text


def check_end(case: Case, end: Completion | MaltError, tries: int) -> None:
    """Check that a case ended as it declares."""
    if isinstance(end, Completion):
        assert case["ends"] in ("answered", "either"), end
        assert end.text.rstrip() == case.get("text", end.text).rstrip()
        assert end.reasoning == case.get("reasoning", end.reasoning)
        assert end.finish_reason == case.get("finish", end.finish_reason)
        json.dumps([end.text, end.reasoning, end.model]).encode("utf-8")
        return
    said = str(end)
    assert (
        case["ends"] == "either" or type(end) is ENDS.get(case["ends"]) or isinstance(end, ENDS.get(case["ends"], ()))
    ), end
    assert case.get("says", "") in said
    assert len(said) < 700
    said.encode("utf-8")
    assert not {"\n", "\x00"} & set(said)
    assert KEY not in said
    assert "hides" not in case or case["hides"] not in said
    assert tries == case.get("tries", tries)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_reply_ends_as_its_case_says_and_a_later_run_goes_on(
    server: ScriptedProvider, runs: tuple[Run, Run], case: Case
) -> None:
    assert goes_on_after(server, *runs, case)


def ask_all(server: ScriptedProvider, settings: Settings, cases: list[Case]) -> list[Completion]:
    """Ask the questions of all cases in one run."""
    session = Session(settings, Limits(), Endpoints(QUICK))
    try:
        asking = make_completer(session, [case["name"] for case in cases])
        return [session.run(asking(request_for(server, case)))[0] for case in cases]
    finally:
        session.close()


def test_replies_are_stored_the_same_on_postgresql(server: ScriptedProvider, postgres: str) -> None:
    played = [case for case in CASES if case["ends"] == "answered" and not {"large", "gzip", "headers"} & case.keys()]
    assert len(played) > 200
    faults = {QUESTION + case["name"]: fault_of(case) for case in played}
    server.faults = lambda asked: faults[asked.prompt]
    settings, before = Settings(store_url=postgres), server.request_count
    first = ask_all(server, settings, played)
    server.faults = None
    again = ask_all(server, settings, played)
    assert server.request_count == before + len(played)
    for case, end, stored in zip(played, first, again, strict=True):
        check_end(case, end, 1)
        assert (stored.text, stored.reasoning, stored.finish_reason) == (end.text, end.reasoning, end.finish_reason)
