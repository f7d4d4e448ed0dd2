"""Artifacts: what people look at on Prefect's server. A dataset does not depend on whether the server takes them."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import httpx
from prefect import get_run_logger

T = TypeVar("T")

TIMEOUT_S = 15.0
"""Seconds to wait for a server that does not answer; one that was killed is back in half of that."""


async def leave(artifact: Awaitable[T]) -> T | None:
    """Leave an artifact and return what it came to; None where the server does not take it."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await artifact
    except (httpx.HTTPError, TimeoutError) as error:
        get_run_logger().warning("Prefect's server did not take an artifact: %s", error or "no answer in time")
        return None
