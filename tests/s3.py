"""A local S3: moto's server, with faults.

    with S3("bucket") as s3:
        environment = s3.environment  # for a process that should use it

Keys in `damaged` are stored with one byte changed; write number `stall_at`, counted from 1, hangs for ever.
"""

import io
import logging
import threading
from collections.abc import Iterable
from typing import Self
from wsgiref.types import StartResponse, WSGIEnvironment

import httpx
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for every request


class S3:
    """The server, with one bucket."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.written: list[str] = []
        """Keys of all finished writes, in order."""
        self.damaged: set[str] = set()
        self.stall_at: int | None = None
        self.stalled = threading.Event()
        self._stopped = threading.Event()
        self._begun = 0
        self._storage = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point AWS's libraries at this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="s3", daemon=True)
        self._thread.start()
        self._post("/moto-api/reset")
        httpx.put(f"{self.url}/{self.bucket}").raise_for_status()
        self.written.clear()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self.allow()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def allow(self) -> None:
        """Accept every request."""
        self._post("/moto-api/reset-auth", b"inf")

    def forbid(self) -> None:
        """Refuse every request."""
        self._post("/moto-api/reset-auth", b"0")

    def listed(self) -> list[str]:
        """Return the keys in the bucket."""
        listing = httpx.get(f"{self.url}/{self.bucket}").text
        return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]

    def _post(self, path: str, content: bytes = b"") -> None:
        httpx.post(self.url + path, content=content).raise_for_status()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        key = environ["PATH_INFO"].removeprefix(f"/{self.bucket}").lstrip("/")
        is_write = environ["REQUEST_METHOD"] == "PUT"
        if is_write:
            self._hinder(key, environ)
        answer: Iterable[bytes] = self._storage(environ, start_response)
        if is_write:
            self.written.append(key)
        return answer

    def _hinder(self, key: str, environ: WSGIEnvironment) -> None:
        self._begun += 1
        if self._begun == self.stall_at:
            self.stalled.set()
            self._stopped.wait()
        if key in self.damaged:
            content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(content[:-1] + bytes([content[-1] ^ 1]))
