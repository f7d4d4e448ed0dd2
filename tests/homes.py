"""A user's home for tests, as `make run` prepares it on installation."""

from importlib.metadata import version
from pathlib import Path

from malt.hosting.prefect_server import cached_database, copy_database


def cache_database(home: Path) -> None:
    """Copy in the empty Prefect database that set-up cached: a server without one creates it, in 3 s of CPU."""
    copy_database(cached_database(), home / ".cache" / "malt" / f"prefect-{version('prefect')}.db")
