"""Headless Chromium, driven over its DevTools protocol: a page's behaviour, console messages and network requests."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)
LISTENING = re.compile(r"DevTools listening on (ws://\S+)")
ANSWER_S = 180.0
"""Seconds to wait for the browser: enough even on a very busy machine."""
LOCAL = ("file:", "data:", "about:")


class Page:
    """One browser tab. Events are collected while a call waits for its answer."""

    def __init__(self, connection: Connection) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a DevTools method and return its result; raise RuntimeError if the browser reports an error."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Load a page and wait until it is loaded; raise TimeoutError if it never is, as one that redirects at once."""
        self.events.clear()
        loader, deadline = self.call("Page.navigate", url=url)["loaderId"], time.monotonic() + ANSWER_S
        while not any(is_loaded(event, loader) for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} was not loaded within {ANSWER_S:.0f} s")
            self._receive()

    def js(self, expression: str) -> Any:  # noqa: ANN401 - any JSON value
        """Evaluate an expression in the page; raise RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9}.get(key, 0)
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def show_as(self, width: int, height: int = 900, *, dark: bool = False, scale: float = 1) -> None:
        """Set the window's size and the reader's theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a screenshot of the window, or of the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    @property
    def complaints(self) -> list[str]:
        """Console messages of the page: errors, warnings, exceptions, and violations of its content security policy."""
        said = [event["params"] for event in self.events if event["method"] == "Log.entryAdded"]
        raised = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        printed = [event["params"] for event in self.events if event["method"] == "Runtime.consoleAPICalled"]
        return [json.dumps(each) for each in [*said, *raised, *printed]]

    @property
    def requested(self) -> list[str]:
        """URLs that the page requested from the network."""
        asked = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked if not each["request"]["url"].startswith(LOCAL)]

    @property
    def reached(self) -> list[str]:
        """URLs that the page requested and that its content security policy did not block."""
        failed = [event["params"] for event in self.events if event["method"] == "Network.loadingFailed"]
        kept = {each["requestId"] for each in failed if each.get("blockedReason") == "csp"}
        asked = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in asked if each["requestId"] not in kept]
        return [url for url in urls if not url.startswith(LOCAL)]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=ANSWER_S))
        if "method" in message:
            self.events.append(message)
        return message


def is_loaded(event: dict[str, Any], loader: str) -> bool:
    """Whether an event reports that this page is loaded; a late event of the previous page has another loader."""
    details = event["params"]
    return bool(event["method"] == "Page.lifecycleEvent" and (details["name"], details["loaderId"]) == ("load", loader))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile; skip the test if Chromium is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine: install Debian's `chromium` to run the tests of the report's page")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            with connect(address_of(process), max_size=None, compression=None, open_timeout=ANSWER_S) as connection:
                yield Page(connection)
                connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
                process.wait(ANSWER_S)
        finally:
            process.kill()


def address_of(process: "subprocess.Popen[str]") -> str:
    """Return the DevTools address that a starting browser prints to stderr."""
    said = []
    for line in process.stderr or ():
        said.append(line)
        if found := LISTENING.search(line):
            return found[1]
    raise RuntimeError(f"chromium did not start: {''.join(said)}")
