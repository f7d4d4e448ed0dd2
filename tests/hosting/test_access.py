"""Access to MALT's local servers: hostile pages, rebound DNS names and other users of the machine get nothing."""

import asyncio
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from websockets import ConnectionClosed, Subprotocol
from websockets.sync.client import connect

from malt.hosting import access
from malt.hosting.prefect_server import cached_database, copy_database
from malt.hosting.private_prefect import PRIVATE, NamedServer, PrefectServer
from malt.hosting.up import SHARED
from malt.llm.provider import embedded
from tests.browser import ANSWER_S, Page, chromium
from tests.postgres import free_port

NOBODY = 65534
ATTACKS = """
window.got = [];
async function ask(how, url, options) {
  try {
    const answer = await fetch(url, options);
    const text = await answer.text();
    if (answer.type !== "opaque" && answer.ok) got.push(how + " read: " + text.slice(0, 200));
  } catch (error) {}
}
function listen(how, url, ...protocols) {
  return new Promise(done => {
    try {
      const socket = new WebSocket(url, ...protocols);
      socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: "guessed"}));
      socket.onmessage = ({data}) => { if (!data.includes("auth_failure")) got.push(how + ": " + data); };
      socket.onerror = socket.onclose = done;
      setTimeout(done, 3000);
    } catch (error) { done(); }
  });
}
async function attack(root) {
  const block = JSON.stringify({name: "evil", type: "process"}), ws = root.replace("http", "ws");
  await ask("secrets", root + "/api/block_documents/filter", {method: "POST", body: '{"include_secrets": true}',
    headers: {"content-type": "application/json"}});
  await ask("settings", root + "/api/admin/settings");
  await ask("no-cors write", root + "/api/work_pools/", {method: "POST", body: block, mode: "no-cors"});
  await ask("write", root + "/api/work_pools/", {method: "POST", body: block,
    headers: {"content-type": "application/json", "Authorization": "Basic " + btoa("malt:guessed")}});
  await ask("models", root + "/v1/models");
  await ask("completion", root + "/v1/chat/completions", {method: "POST", body: "{}"});
  await listen("events", ws + "/api/events/out");
  await listen("prefect events", ws + "/api/events/out", "prefect");
  await listen("logs", ws + "/api/logs/out", "prefect");
  return got;
}
"""


class Target(NamedTuple):
    """A local server of MALT."""

    root: str
    guarded: str
    """Path that only the server's user may request."""
    headers: dict[str, str]
    """Headers that authenticate the user."""
    home: Path | None
    """Folder with its authentication string; None for the embedded server, which has a fixed key."""


@pytest.fixture(scope="module")
def homes() -> Iterator[Path]:
    """Folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="malt-access-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["malt up", "private", "embedded"])
def target(request: pytest.FixtureRequest, homes: Path) -> Iterator[Target]:
    if request.param == "embedded":
        root = embedded.start_endpoint("embedded").removesuffix("/v1")
        yield Target(root, "/v1/models", {"Authorization": f"Bearer {embedded.KEY}"}, None)
        return
    home = homes / request.param.replace(" ", "-")
    is_up = request.param == "malt up"
    settings = {**SHARED, "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui")} if is_up else PRIVATE
    server = PrefectServer(home, settings=settings)
    server.wait_until_ready()
    root = server.api_url.removesuffix("/api")
    yield Target(root, "/api/admin/version", access.auth_headers(server.auth_string), home)
    server.stop()


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_only_clients_with_the_key_are_answered(target: Target) -> None:
    url = target.root + target.guarded
    assert status(url) == 401
    assert status(url, Authorization=target.headers["Authorization"][:-4] + "AAAA") == 401
    assert status(url, **target.headers) == 200


def test_a_rebound_dns_name_gets_nothing(target: Target) -> None:
    port = target.root.rpartition(":")[2]
    assert status(target.root + target.guarded, Host=f"attacker.example:{port}") in (401, 403)
    if target.home is not None:
        assert status(target.root + target.guarded, Host=f"attacker.example:{port}", **target.headers) == 403
        assert status(target.root + "/malt/sign-in", Host=f"attacker.example:{port}") == 403


def test_a_request_from_a_page_of_another_origin_is_refused_even_with_the_key(target: Target) -> None:
    if target.home is None:
        pytest.skip("the embedded server asks for its key alone")
    for origin in ("http://attacker.example", "null", "http://127.0.0.1:1", target.root.replace("http", "https")):
        assert status(target.root + target.guarded, Origin=origin, **target.headers) == 403
    assert status(target.root + target.guarded, Origin=target.root, **target.headers) == 200


JUNK = ("x", "[]", b"\xff", '{"type": "auth", "token": 5}', '{"type": "auth", "token": "\u00e9"}', "[" * 100_000)


def test_junk_sent_to_a_websocket_leaves_no_traceback_in_the_log(target: Target) -> None:
    if target.home is None:
        pytest.skip("the embedded server has no websocket")
    log = target.home / "server.log"
    before = log.read_bytes()
    for said in JUNK:
        with connect(
            f"{target.root.replace('http', 'ws')}/api/events/in",
            subprotocols=[Subprotocol("prefect")],
            open_timeout=60,
        ) as socket:
            socket.send(said)
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=60)
    assert b"Traceback" not in log.read_bytes().removeprefix(before)


@pytest.mark.parametrize(
    ("steps", "is_quiet"), [((), False), (("receive",), True), (("receive", "send"), False)], ids=str
)
def test_an_error_that_no_stranger_s_message_caused_is_raised(steps: tuple[str, ...], is_quiet: bool) -> None:
    """The application fails at once, after its first message, or after it has accepted the connection."""
    sent = []

    async def fail(_scope: access.Scope, receive: access.Receive, send: access.Send) -> None:
        if "receive" in steps:
            await receive()
        if "send" in steps:
            await send({"type": "websocket.send", "text": "{}"})
        raise KeyError("type")

    async def receive() -> access.Scope:
        return {"type": "websocket.receive", "text": "[]"}

    async def send(message: access.Scope) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/api/events/in", "headers": [(b"host", b"127.0.0.1:4200")]}
    with nullcontext() if is_quiet else pytest.raises(KeyError):
        asyncio.run(access.OwnPagesOnly(fail, "127.0.0.1", 4200)(scope, receive, send))
    assert ("websocket.close" in sent) == is_quiet


@pytest.fixture(scope="module")
def hostile_page(homes: Path) -> Iterator[str]:
    """URL of a page with a script that attacks a server."""
    (homes / "hostile").mkdir()
    (homes / "hostile" / "index.html").write_text(f"<!doctype html><script>{ATTACKS}</script>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(homes / "hostile"))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its parent's name
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
        server.shutdown()


def test_a_hostile_page_reads_and_changes_nothing(target: Target, hostile_page: str, tmp_path: Path) -> None:
    with chromium(tmp_path) as page:
        page.open(hostile_page)
        assert page.js(f"attack({json.dumps(target.root)})") == []
    if target.home is not None:
        assert status(f"{target.root}/api/work_pools/evil", **target.headers) == 404


def as_another_user(work: Callable[[], object]) -> str:
    """Run a function as an unprivileged user in a child process; return its OSError as text, or nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            work()
        except OSError as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return said.read()


def test_the_same_page_gets_into_a_stock_server(stock_server: str, hostile_page: str, tmp_path: Path) -> None:
    root = stock_server.removesuffix("/api")
    with chromium(tmp_path / "profile") as page:
        page.open(hostile_page)
        got = page.js(f"attack({json.dumps(root)})")
    assert {said.partition(" read")[0] for said in got} >= {"secrets", "settings", "write"}
    assert status(f"{root}/api/work_pools/evil") == 200


def test_another_user_of_this_machine_gets_nothing(target: Target) -> None:
    assert "401" in as_another_user(lambda: urllib.request.urlopen(target.root + target.guarded, timeout=60))
    for name in ("auth", "prefect.db", "server.log") if target.home else ():
        path = Path(target.home or "", name)
        assert path.stat().st_mode & 0o077 == 0
        assert "PermissionError" in as_another_user(path.read_bytes)


def test_the_printed_link_signs_in_to_prefects_ui_and_another_does_not(target: Target, tmp_path: Path) -> None:
    if target.home is None or target.home.name != "malt-up":
        pytest.skip("it has no UI")
    string = access.read_auth_string(target.home)
    with chromium(tmp_path) as page:
        page.open(f"{target.root}/malt/sign-in#malt:wrong")
        wait_until(page, "document.body.innerText.startsWith('Not signed in')")
        assert page.js("localStorage.length") == 0
        page.open("about:blank")
        page.call(
            "Page.navigate", url=f"{target.root}/malt/sign-in#{string}"
        )  # it redirects, maybe before it is loaded
        wait_until(page, "location.pathname.includes('dashboard') && document.body.innerText.includes('Deployments')")
        assert page.js("atob(localStorage.getItem('prefect-password'))") == string
        assert string not in page.js("location.href")
        assert {urlsplit(url).netloc for url in page.reached} == {urlsplit(target.root).netloc}


def wait_until(page: Page, condition: str) -> None:
    """Wait until a condition holds in the page, which may redirect meanwhile."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        with suppress(RuntimeError):  # the page is just being replaced
            if page.js(condition):
                return
        time.sleep(0.1)
    raise AssertionError(page.js("location.href + document.body.innerText"))


def test_a_server_is_not_shown_in_another_pages_frame(target: Target) -> None:
    if target.home is None:
        pytest.skip("it has no pages")
    with urllib.request.urlopen(f"{target.root}/malt/sign-in", timeout=60) as answer:
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_string_is_made_once_and_two_homes_have_two(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    first, second = map(access.read_auth_string, homes)
    assert first == access.read_auth_string(homes[0]) != second
    assert len(first) > 40


@pytest.fixture(scope="module")
def stock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API URL of a stock Prefect server, without MALT's protection."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "prefect.server.api.server:create_app",
        "--port",
        str(port),
    ]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = tmp_path_factory.mktemp("stock")
    copy_database(cached_database(), home / "prefect.db")  # saves the server 3 s of CPU
    environment = {**outside, **PRIVATE, "PREFECT_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/api"
        while not is_listening(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield url
        process.terminate()


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_a_named_server_without_authentication_gets_one_line_of_warning(
    stock_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    NamedServer(stock_server).wait_until_ready()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "malt"]
    assert stock_server in said
    assert "no authentication" in said
    assert "\n" not in said


def test_a_named_server_of_malt_gets_no_warning(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    if target.home is None:
        pytest.skip("it is no Prefect server")
    NamedServer(f"{target.root}/api").wait_until_ready()
    assert [record for record in caplog.records if record.name == "malt"] == []


def test_an_address_beyond_this_machine_is_served_under_its_own_name() -> None:
    assert access.own_origins("127.0.0.1", 4200) == ("http://127.0.0.1:4200", "http://localhost:4200")
    assert access.own_origins("10.0.0.5", 80)[0] == "http://10.0.0.5:80"
    assert access.own_origins("0.0.0.0", 80)[0] == f"http://{socket.gethostname().lower()}:80"
    assert access.own_origins("Lab.local", 80)[0] == "http://lab.local:80"


@pytest.mark.parametrize(
    ("listens", "host", "origin", "is_answered"),
    [
        ("127.0.0.1", "127.0.0.1:4200", "http://127.0.0.1:4200", True),
        ("127.0.0.1", "127.0.0.1:4200", "https://127.0.0.1:4200", False),
        ("127.0.0.1", "malt.example", "https://malt.example", False),
        ("127.0.0.1", "10.0.0.5:4200", "http://10.0.0.5:4200", False),
        ("0.0.0.0", "10.0.0.5:4200", "http://10.0.0.5:4200", True),
        ("0.0.0.0", "[fe80::1]:4200", "http://[fe80::1]:4200", True),
        ("0.0.0.0", "malt.example", "https://malt.example", True),
        ("0.0.0.0", "malt.example:8443", "https://malt.example:8443", True),
        ("0.0.0.0", "10.0.0.5:4200", "http://attacker.example", False),
        ("0.0.0.0", "10.0.0.5:4200", "https://attacker.example", False),
        ("0.0.0.0", "10.0.0.5:4200", "http://10.0.0.5", False),
        ("0.0.0.0", "10.0.0.5:4200", "null", False),
        ("0.0.0.0", "attacker.example:4200", "http://attacker.example:4200", False),
        ("0.0.0.0", "malt.example", "https://malt.example.attacker.example", False),
        ("0.0.0.0", "malt.example", "https://attacker.example/https://malt.example", False),
    ],
)
async def test_only_the_requested_address_is_accepted_as_origin(
    listens: str, host: str, origin: str, is_answered: bool
) -> None:
    statuses = []

    async def app(_scope: access.Scope, _receive: access.Receive, send: access.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: MutableMapping[str, Any]) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def receive() -> dict[str, str]:
        return {"type": "http.request"}

    headers = [(b"host", host.encode()), (b"origin", origin.encode())]
    scope = {"type": "http", "path": "/api/admin/version", "headers": headers}
    await access.OwnPagesOnly(app, listens, 4200)(scope, receive, send)
    assert statuses == [200 if is_answered else 403]
