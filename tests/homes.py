"""Homes of users to test with, as set-up leaves them."""

from importlib.metadata import version
from pathlib import Path

from malt.hosting.prefect_server import cached_database, copy_database


def cache_database(home: Path) -> None:
    """Put there the database that set-up cached: a server without one makes its own, for 3 s of CPU."""
    copy_database(cached_database(), home / ".cache" / "malt" / f"prefect-{version('prefect')}.db")
