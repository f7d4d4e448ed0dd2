"""Servers of ours are their user's alone: no page in a browser, no DNS name turned here and no other user can ask them."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

import pytest

from malt.hosting import access
from malt.hosting.private_prefect import PRIVATE, NamedServer, PrefectServer
from malt.hosting.up import SHARED
from malt.llm.provider import embedded
from tests.browser import chromium

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
      socket.onmessage = message => { if (!message.data.includes("auth_failure")) got.push(how + ": " + message.data); };
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
    """A server of ours."""

    root: str
    guarded: str
    """A path that its user may ask for."""
    headers: dict[str, str]
    """What makes that the user."""
    home: Path | None
    """Where its authentication string is."""


@pytest.fixture(scope="module")
def homes() -> Iterator[Path]:
    """A folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="malt-access-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["malt up", "private", "embedded"])
def target(request: pytest.FixtureRequest, homes: Path) -> Iterator[Target]:
    if request.param == "embedded":
        root = embedded.endpoint("embedded").removesuffix("/v1")
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


def test_only_who_has_the_key_is_answered(target: Target) -> None:
    url = target.root + target.guarded
    assert status(url) == 401
    assert status(url, Authorization=target.headers["Authorization"][:-4] + "AAAA") == 401
    assert status(url, **target.headers) == 200


def test_a_name_that_was_turned_to_this_machine_gets_nothing(target: Target) -> None:
    port = target.root.rpartition(":")[2]
    assert status(target.root + target.guarded, Host=f"attacker.example:{port}") in (401, 403)
    if target.home is not None:
        assert status(target.root + target.guarded, Host=f"attacker.example:{port}", **target.headers) == 403
        assert status(target.root + "/malt/sign-in", Host=f"attacker.example:{port}") == 403


def test_a_request_from_a_page_of_another_origin_is_refused_whatever_it_knows(target: Target) -> None:
    if target.home is None:
        pytest.skip("the embedded server asks for its key alone")
    for origin in ("http://attacker.example", "null", "http://127.0.0.1:1", target.root.replace("http", "https")):
        assert status(target.root + target.guarded, Origin=origin, **target.headers) == 403
    assert status(target.root + target.guarded, Origin=target.root, **target.headers) == 200


@pytest.fixture(scope="module")
def hostile_page(homes: Path) -> Iterator[str]:
    """The address of a page that attacks what its fragment names."""
    (homes / "hostile").mkdir()
    (homes / "hostile" / "index.html").write_text(f"<!doctype html><script>{ATTACKS}</script>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(homes / "hostile"))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its parent's name
            """Say nothing."""

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


def test_another_user_of_this_machine_gets_nothing(target: Target) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    ask = f"import urllib.request; urllib.request.urlopen({target.root + target.guarded!r})"
    done = subprocess.run([sys.executable, "-I", "-c", ask], user=NOBODY, group=NOBODY, capture_output=True, text=True)
    assert "HTTP Error 401" in done.stderr
    for name in ("auth", "prefect.db", "server.log") if target.home else ():
        assert target.home
        assert (target.home / name).stat().st_mode & 0o077 == 0
        read = f"print(open({str(target.home / name)!r}).read())"
        done = subprocess.run([sys.executable, "-I", "-c", read], user=NOBODY, capture_output=True, text=True, group=NOBODY)
        assert ("PermissionError" in done.stderr, done.stdout) == (True, "")


def test_the_printed_link_signs_in_to_prefects_ui_and_another_does_not(target: Target, tmp_path: Path) -> None:
    if target.home is None or target.home.name != "malt-up":
        pytest.skip("it has no UI")
    string = access.read_auth_string(target.home)
    with chromium(tmp_path) as page:
        page.open(f"{target.root}/malt/sign-in#malt:wrong")
        assert page.js("new Promise(done => setTimeout(() => done(localStorage.length), 1000))") == 0
        page.open("about:blank")
        page.open(f"{target.root}/malt/sign-in#{string}")
        page.js("new Promise(done => setTimeout(done, 5000))")
        assert page.js("atob(localStorage.getItem('prefect-password'))") == string
        assert "/login" not in page.js("location.href")
        assert string not in page.js("location.href")


def test_a_server_is_not_shown_in_another_pages_frame(target: Target) -> None:
    if target.home is None:
        pytest.skip("it has no pages")
    with urllib.request.urlopen(f"{target.root}/malt/sign-in", timeout=60) as answer:
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_the_string_is_made_once_and_two_homes_have_two(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    first, second = map(access.read_auth_string, homes)
    assert first == access.read_auth_string(homes[0]) != second
    assert len(first) > 40


def test_a_named_server_without_authentication_gets_one_line_of_warning(
    homes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_home, closed = homes / "open", PrefectServer(homes / "closed")
    open_server = PrefectServer(open_home, settings={**PRIVATE, "PREFECT_SERVER_API_AUTH_STRING": ""})
    for server in (open_server, closed):
        server.wait_until_ready()
        NamedServer(server.api_url).wait_until_ready()
    (said,) = [record.getMessage() for record in caplog.records]
    assert open_server.api_url in said
    assert "no authentication" in said
    assert "\n" not in said
    for server in (open_server, closed):
        server.stop()


def test_an_address_beyond_this_machine_is_served_under_its_own_name() -> None:
    assert access.own_origins("127.0.0.1", 4200) == ("http://127.0.0.1:4200", "http://localhost:4200")
    assert access.own_origins("10.0.0.5", 80)[0] == "http://10.0.0.5:80"
