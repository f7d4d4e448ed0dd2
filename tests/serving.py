"""An HTTP server on loopback that runs in its own thread and event loop for the length of a `with` block."""

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from typing import Self

from aiohttp import web


class Served(ABC):
    """A server, used as a context manager; subclasses provide the application."""

    address: str = ""
    """URL of the server: `http://127.0.0.1:<port>`."""

    @abstractmethod
    def application(self) -> web.Application:
        """Return the application to serve."""

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), name=type(self).__name__, daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stopped = asyncio.Event()
        runner = web.AppRunner(self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        await web.SockSite(runner, listener).start()
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started.set()
        await self._stopped.wait()
        await runner.cleanup()
