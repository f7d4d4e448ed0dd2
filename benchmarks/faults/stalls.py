"""Stalls one request of every kind to Prefect's API: `python -m benchmarks.faults.stalls`.

The first request of each kind is never answered, so that its read timeout expires (1 s here, 60 s by default);
the run has to complete nevertheless.
"""

import asyncio
import os
import re
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.generate import generate
from malt.config.spec import RunSpec
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

_REQUEST = re.compile(rb"(GET|POST|PATCH|PUT|DELETE) (\S+) HTTP")
_NEVER_S = 3600.0


class StallingProxy:
    """A proxy on its own port that forwards everything except the first request of each kind."""

    def __init__(self, api_url: str) -> None:
        self._upstream = urlsplit(api_url).port
        self.seen = Counter[str]()
        self._listens = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._listens.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.api_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
        self._listens.set()
        await server.serve_forever()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._upstream)
        await asyncio.gather(self._pump(reader, ours), self._pump(theirs, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if (request := _REQUEST.match(data)) and self._is_first(request):
                    await asyncio.sleep(_NEVER_S)
                writer.write(data)
                await writer.drain()
        writer.close()

    def _is_first(self, request: re.Match[bytes]) -> bool:
        path = re.sub("[0-9a-f-]{36}", "ID", request[2].decode().partition("?")[0])
        if path.startswith("/api/events"):  # a stream, not a request
            return False
        kind = f"{request[1].decode()} {path}"
        self.seen[kind] += 1
        return self.seen[kind] == 1


def run_through(proxy: StallingProxy, provider: ScriptedProvider, folder: Path, tracking: str) -> str:
    """Run a dataset of two questions; return how it ended."""
    spec = spec_of(provider, write_questions(folder)).as_config()
    declared = RunSpec.model_validate({**spec, "name": tracking, "run": {"tracking": tracking}})
    with temporary_settings({PREFECT_API_URL: proxy.api_url, PREFECT_API_REQUEST_TIMEOUT: 1.0}):
        return asyncio.run(grow(declared))


async def grow(spec: RunSpec) -> str:
    """Run the flow; return its final state."""
    state: State[Any] = await generate(spec, return_state=True)
    return f"{state.name}: {state.message}"


def main() -> None:
    """Run in both tracking modes, and print how each ended."""
    os.environ["TEST_KEY"] = "test-key"
    with prefect_test_harness(server_startup_timeout=600), ScriptedProvider() as provider:
        for tracking in ("branch", "shard"):
            proxy = StallingProxy(PREFECT_API_URL.value() or "")
            with tempfile.TemporaryDirectory() as folder:
                os.environ["MALT_DATA_DIR"] = folder
                ended = run_through(proxy, provider, Path(folder), tracking)
            again = [kind for kind, count in proxy.seen.items() if count > 1]
            print(
                f"{tracking}: {ended}; {len(proxy.seen)} kinds of requests stood still once, {len(again)} were repeated"
            )


if __name__ == "__main__":
    main()
