"""A provider on loopback that answers at once or after a fixed time: `python -m benchmarks.loopback LATENCY_S`.

Prints its base URL, then serves until SIGTERM. `GET /stats` returns the times of the first and last request and the
number of completions, and resets them; times are of the monotonic clock, which all processes share.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field

from aiohttp import web

WORK = "First we look at what is given, then at what is asked; each step follows from the one before. " * 6
"""Text of a reply before its answer: 570 characters."""


@dataclass
class Stats:
    """Counts since the last request for statistics."""

    requests: int = 0
    completions: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    most_in_flight: int = 0


@dataclass
class Loopback:
    """The server; every reply is different, and every third one has the right answer, 42."""

    latency_s: float
    stats: Stats = field(default_factory=Stats)
    served: int = 0
    in_flight: int = 0

    async def complete(self, request: web.Request) -> web.Response:
        """Answer with as many choices as were asked for."""
        body = json.loads(await request.read())
        self.stats.first_at = self.stats.first_at or time.monotonic()
        self.in_flight += 1
        self.stats.most_in_flight = max(self.stats.most_in_flight, self.in_flight)
        await asyncio.sleep(self.latency_s)
        self.in_flight -= 1
        count = body.get("n") or 1
        self.stats.requests += 1
        self.stats.completions += count
        self.stats.last_at = time.monotonic()
        return web.Response(body=self.reply(count), content_type="application/json")

    def reply(self, count: int) -> bytes:
        """Write a chat completion."""
        choices = [self.choice(index) for index in range(count)]
        usage = {"prompt_tokens": 200, "completion_tokens": 150 * count, "total_tokens": 200 + 150 * count}
        head = {"id": f"chatcmpl-{self.served}", "object": "chat.completion", "created": 1_700_000_000, "model": "m"}
        return json.dumps({**head, "choices": choices, "usage": usage}).encode()

    def choice(self, index: int) -> dict[str, object]:
        """Write one choice; no two texts are equal."""
        self.served += 1
        answer = 42 if self.served % 3 == 0 else self.served % 41
        text = f"Attempt {self.served}. {WORK}\n\nFinal Answer: {answer}"
        return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}

    async def tell(self, _request: web.Request) -> web.Response:
        """Return the statistics and reset them."""
        stats, self.stats = self.stats, Stats()
        return web.json_response(asdict(stats))


async def serve(latency_s: float) -> None:
    """Serve until SIGTERM."""
    server, ended = Loopback(latency_s), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/stats", server.tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await web.SockSite(runner, listener).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
