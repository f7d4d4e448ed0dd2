"""What LiteLLM's own HTTP clients may bring: replies of a bounded size, from the host that was asked.

openai_compatible.py has clients of its own; this is for providers that LiteLLM asks itself.
"""

from collections.abc import AsyncIterable
from functools import wraps
from typing import Any

import httpx

from malt.llm.faults import Unusable

MOST_BYTES = 100_000_000
"""The longest reply that is read, once unpacked."""
_UNPACKED = ("content-encoding", "content-length", "transfer-encoding")


class BoundedTransport(httpx.AsyncBaseTransport):
    """Reads what another transport brings piece by piece up to a size, and drops redirects to other hosts."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return a whole reply. Raises `Unusable` for one that is too large."""
        reply = await self._inner.handle_async_request(request)
        try:
            body = await read_bounded(reply.aiter_bytes())
        finally:
            await reply.aclose()
        dropped = {*_UNPACKED, *(["location"] if _leads_away(request.url, reply) else [])}
        headers = [(name, value) for name, value in reply.headers.multi_items() if name.lower() not in dropped]
        return httpx.Response(reply.status_code, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        """Close what it reads from."""
        await self._inner.aclose()


async def read_bounded(pieces: AsyncIterable[bytes], most: int = MOST_BYTES) -> bytes:
    """Read a reply piece by piece as it is unpacked: a few bytes of gzip may stand for gigabytes. Raises `Unusable`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > most:
            raise Unusable(f"sent more than {most / 1e6:.0f} MB, which no answer of that length takes")
    return bytes(body)


def _leads_away(asked: httpx.URL, reply: httpx.Response) -> bool:
    """Say whether a redirect would take prompts and key to another host, or out of TLS."""
    target = asked.join(reply.headers.get("location", ""))
    return target.host != asked.host or target.scheme < asked.scheme


def bound_clients(handler: Any) -> None:  # noqa: ANN401 - LiteLLM is not typed
    """Have every client that LiteLLM makes from now on bounded; all get their transport from this one method."""
    make = handler.create_async_transport

    @wraps(make)
    def make_bounded(*arguments: object, **named: object) -> BoundedTransport:
        return BoundedTransport(make(*arguments, **named) or httpx.AsyncHTTPTransport())

    handler.create_async_transport = staticmethod(make_bounded)
