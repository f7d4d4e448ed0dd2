"""Access control of the Prefect servers that MALT starts: their users know an authentication string.

Prefect checks the string. `OwnPagesOnly` refuses requests from other origins before Prefect sees them, and keeps the
UI's pages from other hosts: Prefect's UI contacts an analytics host even with analytics off. `WithReports` serves
versions' reports at addresses that only this server's users can know.
"""

import base64
import hmac
import json
import logging
import os
import re
import secrets
import socket
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from malt.config.secret_scan import redact

AUTH_STRING = "PREFECT_API_AUTH_STRING"
"""Environment variable from which Prefect's clients read the authentication string."""
LOOPBACK = ("127.0.0.1", "localhost")
SIGN_IN_PATH = "/malt/sign-in"
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_SIGN_IN_PAGE = """<!doctype html><meta charset="utf-8"><title>MALT</title><p id="said">Signing in …</p><script>
const key = btoa(decodeURIComponent(location.hash.slice(1)));
history.replaceState(null, "", location.pathname);
fetch("/api/admin/version", {headers: {Authorization: "Basic " + key}}).then(answer => {
  if (!answer.ok) throw new Error("this link is not for this server");
  localStorage.setItem("prefect-password", key);
  location.replace("/");
}).catch(error => { document.getElementById("said").textContent = "Not signed in: " + error.message; });
</script>"""
"""Page that stores the string where both of Prefect's UIs look for it. It follows `#`, so no server or log sees it."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("malt")


def read_auth_string(home: Path) -> str:
    """Return the authentication string of the servers with records in `home`; a random one, created on first use."""
    path = home / "auth"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=home) as file:  # of mode 0600
            file.write(f"malt:{secrets.token_urlsafe(32)}\n")
            file.flush()
            with suppress(FileExistsError):  # another process was faster
                os.link(file.name, path)
    path.chmod(0o600)
    return path.read_text().strip()


def auth_headers(auth_string: str | None) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(auth_string.encode()).decode()}"} if auth_string else {}


def own_origins(host: str, port: int) -> tuple[str, ...]:
    own = socket.gethostname() if host in WILDCARDS else host
    names = LOOPBACK if own in LOOPBACK else (own, *LOOPBACK)
    return tuple(f"http://{name}:{port}" for name in map(str.lower, names))  # browsers send host names in lower case


def warn_if_open(api_url: str, timeout_s: float) -> None:
    """Warn of a Prefect server without authentication."""
    try:
        urllib.request.urlopen(f"{api_url}/admin/version", timeout=timeout_s).close()  # noqa: S310 - as configured
    except (HTTPException, OSError, ValueError):
        return
    _log.warning(
        "warning: PREFECT_API_URL = %s: this server has no authentication: anyone who reaches it, even a web page in a "
        "browser here, can run code as its workers; start it with PREFECT_SERVER_API_AUTH_STRING set",
        redact(api_url),
    )


def post_json(url: str, body: object, timeout_s: float) -> tuple[int, Any]:
    """Post to Prefect's API as its clients do; return the status and the body. Raises `OSError`."""
    api_url, headers = url.partition("/api/")[0] + "/api", auth_headers(os.environ.get(AUTH_STRING))
    client = "malt"
    status, reply = _ask(urllib.request.Request(f"{api_url}/csrf-token?client={client}", headers=headers), timeout_s)  # noqa: S310
    if status == 200:  # else the server has no CSRF protection
        headers |= {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": reply["token"]}
    headers["Content-Type"] = "application/json"
    return _ask(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout_s)  # noqa: S310 - as configured


def _ask(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 - as configured
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, error.read(1000).decode(errors="replace")


class OwnPagesOnly:
    """Serve an app only under its own host names and to its own pages; add the sign-in page.

    Any other `Host` may be a DNS rebinding attack; any other `Origin` is a foreign page.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        self._app = app
        self._origins: Collection[str] = own_origins(host, port)
        self._hosts = None if host in WILDCARDS else {urlsplit(origin).hostname for origin in self._origins}
        self._headers = _headers(self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif not self._is_own(scope):
            await self._refuse(scope, send)
        elif scope["path"] == SIGN_IN_PATH and scope["type"] == "http":
            await self._show(send, 200, "text/html; charset=utf-8", _SIGN_IN_PAGE)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
        else:
            await self._app(scope, receive, self._guarded(send))

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Close a websocket whose first message Prefect cannot parse: a traceback for each would fill the log.

        An error after a message but without a reply is the client's fault: Prefect replies only to holders of the key.
        """
        has_spoken = is_answered = False

        async def take() -> MutableMapping[str, Any]:
            nonlocal has_spoken
            message = await receive()
            has_spoken = has_spoken or message["type"] == "websocket.receive"
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal is_answered
            is_answered = is_answered or message["type"] == "websocket.send"
            await send(message)

        try:
            await self._app(scope, take, answer)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            if is_answered or not has_spoken:
                raise
            with suppress(RuntimeError):  # it is closed already
                await send({"type": "websocket.close", "code": 1003})

    def _is_own(self, scope: Scope) -> bool:
        hosts, origins = (_values(scope, name) for name in (b"host", b"origin"))
        if len(hosts) != 1:
            return False
        is_own_host = self._hosts is None or urlsplit(f"//{hosts[0]}").hostname in self._hosts
        return is_own_host and all(self._is_own_origin(origin, hosts[0]) for origin in origins)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Whether an origin is ours. A server on all addresses can list neither them nor the name of a TLS proxy.

        There the origin must be the requested host, by https or as an IP address: a rebound DNS name is no IP address
        and has no certificate.
        """
        if origin in self._origins or self._hosts is not None:
            return origin in self._origins
        return origin == f"https://{host}" or (origin == f"http://{host}" and _is_number(host))

    async def _refuse(self, scope: Scope, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._show(send, 403, "text/plain", "This server answers only its own pages, at its own address.")

    async def _show(self, send: Send, status: int, kind: str, text: str) -> None:
        headers = [(b"content-type", kind.encode()), *self._headers, (b"cache-control", b"no-store")]
        await _answer(send, status, headers, text.encode())

    def _guarded(self, send: Send) -> Send:
        """Add security headers to every response, which keep the pages out of foreign frames."""

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        return sent


async def _answer(send: Send, status: int, headers: Collection[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(origins: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return the security headers of every page: no frames, connections only to our origins, no referrer."""
    asked = " ".join(["'self'", *origins, *(origin.replace("http", "ws", 1) for origin in origins)])
    policy = f"frame-ancestors 'none'; connect-src {asked}"
    return [(b"content-security-policy", policy.encode()), (b"referrer-policy", b"no-referrer")]


def _is_number(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(urlsplit(f"//{host}").hostname or ""))
    return False


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


# Reports.

_REPORT, _PREFIX = "report.html", "/malt/reports/"
_ADDRESS = re.compile(rf"{_PREFIX}([0-9a-f]{{32}})/((?:datasets|models|evaluations)/[a-z0-9-]+/v[0-9]+)")
SANDBOX = "sandbox allow-scripts; frame-ancestors 'none'"
"""Policy of a report's page: its scripts cannot read what the UI stores in the browser."""
_REPORT_HEADERS = [
    (b"content-security-policy", SANDBOX.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def report_url(api_url: str, auth_string: str, version: Path) -> str:
    """Return the URL at which a version's report is served; a signature in it proves that the reader may see it."""
    place = "/".join(version.parts[-3:])
    return f"{api_url.removesuffix('/api')}{_PREFIX}{_sign(auth_string, place)}/{place}"


def _sign(auth_string: str, place: str) -> str:
    return hmac.new(auth_string.encode(), place.encode(), sha256).hexdigest()[:32]


class WithReports:
    """Serves an app, and the reports of the versions below a data folder."""

    def __init__(self, app: App, data_dir: Path, auth_string: str) -> None:
        self._app, self._data_dir, self._auth_string = app, data_dir, auth_string

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        report = self._find(scope["path"])
        status, body = (200, report.read_bytes()) if report else (404, b"There is no such report.")
        kind = b"text/html; charset=utf-8" if report else b"text/plain"
        await _answer(send, status, [(b"content-type", kind), *_REPORT_HEADERS], body)

    def _find(self, path: str) -> Path | None:
        asked = _ADDRESS.fullmatch(path)
        if asked is None or not hmac.compare_digest(asked[1], _sign(self._auth_string, asked[2])):
            return None
        report = self._data_dir / asked[2] / _REPORT
        return report if report.is_file() else None
