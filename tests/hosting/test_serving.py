"""`malt serve`: real requests on loopback to the three roles as one model."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.errors import ConfigError
from malt.evaluation.evaluate import evaluate
from malt.hosting.serving import application, claim_port, open_trio
from tests import mishaps
from tests.evaluation.planted import QUESTIONS, planted_spec
from tests.providers import ScriptedProvider

KEY = "malt-test-key"
SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.alone]\nroles = ["generator"]\n'


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider) -> RunSpec:
    return planted_spec(tmp_path, provider, SYSTEMS)


@pytest.fixture
def client(spec: RunSpec) -> Iterator[httpx.Client]:
    with served(spec) as opened:
        yield opened


@contextmanager
def served(spec: RunSpec, system: str | None = None) -> Iterator[httpx.Client]:
    """Serve on a free port; stop when the client is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = application(open_trio(spec, system, Settings()), KEY)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def ask(client: httpx.Client, text: str = "What is 103 + 10?", **options: object) -> httpx.Response:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return client.post("/chat/completions", json={"model": "malt/plain", "messages": turns, **options})


def test_the_answer_is_the_refiner_s_and_its_chain_stands_beside_it(
    client: httpx.Client, provider: ScriptedProvider
) -> None:
    body = ask(client).json()
    assert provider.request_count == 3
    assert [choice["message"]["content"][:30] for choice in body["choices"]] == ["Chain 0 of question 3, by refi"]
    [chain] = body["malt"]["chains"]
    assert chain["generator"].startswith("Chain 0 of question 3, by generator")
    assert chain["verdict"] in ("correct", "wrong")
    assert body["malt"]["question_id"] == "sum-103"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] > 0


def test_several_choices_are_independent_chains(client: httpx.Client, provider: ScriptedProvider) -> None:
    body = ask(client, n=3).json()
    assert [choice["message"]["content"][:7] for choice in body["choices"]] == ["Chain 0", "Chain 1", "Chain 2"]
    assert provider.request_count == 1 + 3 + 3


def test_a_stream_ends_with_the_same_text_and_usage(client: httpx.Client) -> None:
    whole = ask(client).json()
    lines = [line.removeprefix("data: ") for line in ask(client, stream=True).text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    pieces = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 2
    assert chunks[-1]["usage"] == whole["usage"]


def test_evaluated_questions_are_answered_from_the_store_with_the_same_accuracy(
    spec: RunSpec, provider: ScriptedProvider
) -> None:
    summary = evaluate(spec).summary
    requests_before = provider.request_count
    right = 0
    with served(spec, "plain") as client:
        for number in range(100, 100 + QUESTIONS):
            choices = ask(client, f"What is {number} + 10?", n=3).json()["choices"]
            right += sum(choice["message"]["content"].endswith(f"Final Answer: {number + 10}") for choice in choices)
    assert right / (3 * QUESTIONS) == pytest.approx(summary.systems["plain"].ma.accuracy)
    assert provider.request_count == requests_before


@pytest.mark.parametrize("text", ["What is 103 + 10?", "What is 103 + 10?\nA. 113\nB. 114"])
def test_a_question_with_choices_is_known_by_its_text_with_and_without_them(
    text: str, spec: RunSpec, provider: ScriptedProvider
) -> None:
    assert spec.evaluate is not None
    assert spec.evaluate.questions is not None
    row = {"id": "of-choice", "question": "What is 103 + 10?", "ground_truth": "A", "choices": ["113", "114"]}
    Path(spec.evaluate.questions.source).write_text(json.dumps(row) + "\n")
    with served(spec) as client:
        assert ask(client, text).json()["malt"]["question_id"] == "of-choice"
    assert "B. 114" in provider.requests[0].prompt


def test_a_text_that_two_questions_share_matches_neither(spec: RunSpec) -> None:
    assert spec.evaluate is not None
    assert spec.evaluate.questions is not None
    row = {"question": "What is 103 + 10?", "ground_truth": "A"}
    rows = [{**row, "id": f"of-{last}", "choices": ["113", last]} for last in ("114", "115")]
    Path(spec.evaluate.questions.source).write_text("".join(json.dumps(each) + "\n" for each in rows))
    with served(spec) as client:
        assert ask(client).json()["malt"]["question_id"] not in ("of-114", "of-115")


def test_roles_outside_a_system_are_not_asked(spec: RunSpec, provider: ScriptedProvider) -> None:
    with served(spec, "alone") as client:
        assert client.get("/models").json()["data"][0]["id"] == "malt/alone"
        body = ask(client).json()
        assert body["malt"]["chains"][0].keys() == {"generator", "verdict"}
        assert provider.request_count == 1


def test_a_new_question_is_asked_and_found_in_the_store_afterwards(
    client: httpx.Client, provider: ScriptedProvider
) -> None:
    first = ask(client, "What is 900 + 10?").json()
    requests_before = provider.request_count
    assert ask(client, "What is 900 + 10?").json()["choices"] == first["choices"]
    assert provider.request_count == requests_before == 3


def test_a_client_without_the_key_is_refused(client: httpx.Client, provider: ScriptedProvider) -> None:
    client.headers["Authorization"] = "Bearer other"
    assert ask(client).status_code == 401
    assert client.get("/models").status_code == 401
    assert provider.request_count == 0


def test_errors_have_the_shape_that_clients_expect(client: httpx.Client, provider: ScriptedProvider) -> None:
    assert "messages" in client.post("/chat/completions", json={}).json()["error"]["message"]
    assert ask(client, n=0).status_code == 400
    assert ask(client, " ").json()["error"]["message"] == "messages: the last user turn is empty"
    provider.faults = lambda _request: mishaps.bad_request("no such luck")
    refused = ask(client)
    assert (refused.status_code, "no such luck" in refused.json()["error"]["message"]) == (502, True)


def test_an_empty_account_gives_an_error_until_it_is_filled_again(
    client: httpx.Client, provider: ScriptedProvider
) -> None:
    provider.faults = mishaps.when(lambda _request: True, mishaps.payment_required())
    assert ask(client).status_code == 503
    provider.faults = None
    assert ask(client).status_code == 200


def test_usage_before_the_account_was_empty_counts_towards_the_cap(spec: RunSpec, provider: ScriptedProvider) -> None:
    config = spec.as_config()
    for role in config["roles"].values():
        role["max_tokens"] = 50
    capped = RunSpec.model_validate({**config, "limits": {"max_tokens_total": 5_000}})
    with served(capped) as client:
        allowed = count_answers(client, "Never empty.")
    with served(capped) as client:
        assert ask(client, "First of all. What is 100 + 10?").status_code == 200
        provider.faults = mishaps.when(lambda _request: True, mishaps.payment_required())
        assert ask(client, "Refused. What is 101 + 10?").status_code == 503
        provider.faults = None
        assert 1 + count_answers(client, "Refilled.") == allowed > 2


def count_answers(client: httpx.Client, prefix: str) -> int:
    """Ask one question after another until the cap is reached; return the number of answers."""
    texts = (f"{prefix} What is {100 + number} + 10?" for number in range(QUESTIONS))
    return next(number for number, text in enumerate(texts) if ask(client, text).status_code == 503)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen on 127.0.0.1 .Address already in use"):
            claim_port(port)


def test_a_system_that_is_not_there_is_named(spec: RunSpec) -> None:
    with pytest.raises(ConfigError, match="--system none: no such system; there are: plain, alone"):
        open_trio(spec, "none", Settings())


def test_a_request_is_read_up_to_a_bound_and_no_further(
    client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "What is 103 + 10?"}]}).encode()
    assert client.post("/chat/completions", content=b" " * 2**22 + body).status_code == 413
    base = client.base_url
    with socket.create_connection((base.host, base.port or 0)) as broken:
        lines = ("POST /v1/chat/completions HTTP/1.1", "Host: h", f"Authorization: Bearer {KEY}", "Content-Length: 99")
        broken.sendall("\r\n".join([*lines, "", "{"]).encode())
    assert client.post("/chat/completions", content=b" " * 2**21 + body).status_code == 200
    assert "Traceback" not in capfd.readouterr().err
