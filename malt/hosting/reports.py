"""Reports of versions, served beside Prefect's UI under addresses that only this server's users can know."""

import hmac
import re
from hashlib import sha256
from pathlib import Path

from malt.hosting.access import App, Receive, Scope, Send

_REPORT, _PREFIX = "report.html", "/malt/reports/"
_ADDRESS = re.compile(rf"{_PREFIX}([0-9a-f]{{32}})/((?:datasets|models|evaluations)/[a-z0-9-]+/v[0-9]+)")
SANDBOX = "sandbox allow-scripts; frame-ancestors 'none'"
"""Policy of a report's page: it has no way to what the UI keeps in the browser."""
_HEADERS = [
    (b"content-security-policy", SANDBOX.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def report_url(api_url: str, auth_string: str, version: Path) -> str:
    """Return where the report of a version's folder is served; the address holds what proves that one may read it."""
    place = "/".join(version.parts[-3:])
    return f"{api_url.removesuffix('/api')}{_PREFIX}{_sign(auth_string, place)}/{place}"


def _sign(auth_string: str, place: str) -> str:
    return hmac.new(auth_string.encode(), place.encode(), sha256).hexdigest()[:32]


class WithReports:
    """Serve an app, and the reports of the versions below a data folder."""

    def __init__(self, app: App, data_dir: Path, auth_string: str) -> None:
        self._app, self._data_dir, self._auth_string = app, data_dir, auth_string

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        report = self._find(scope["path"])
        status, body = (200, report.read_bytes()) if report else (404, b"There is no such report.")
        kind = b"text/html; charset=utf-8" if report else b"text/plain"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *_HEADERS]})
        await send({"type": "http.response.body", "body": body})

    def _find(self, path: str) -> Path | None:
        asked = _ADDRESS.fullmatch(path)
        if asked is None or not hmac.compare_digest(asked[1], _sign(self._auth_string, asked[2])):
            return None
        report = self._data_dir / asked[2] / _REPORT
        return report if report.is_file() else None
