"""Artifacts: what people look at on Prefect's server. A dataset does not depend on whether the server takes them."""

import asyncio
import os
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import httpx
from prefect import get_run_logger
from prefect.settings import PREFECT_API_URL

from malt.hosting.access import AUTH_STRING
from malt.hosting.reports import SANDBOX, report_url
from malt.sanitize import Markdown, code_span

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


async def link_report(version: Path, command: str) -> Markdown:
    """Return a link to a version's report where the server shows it, as that of `malt up` does; else where it lies."""
    url = report_url(PREFECT_API_URL.value() or "", os.environ.get(AUTH_STRING, ""), version)
    with suppress(httpx.HTTPError, httpx.InvalidURL):
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            shown = await client.get(url)
            if shown.headers.get("content-security-policy", "").startswith(SANDBOX):  # not the UI's own page
                return Markdown(f"[report, with the trees]({url})")
    return Markdown(f"report, with the trees: {code_span(str(version / 'report.html'))} ({code_span(command)})")
