"""A user's home to test with, as `make run` leaves it when it installs."""

from importlib.metadata import version
from pathlib import Path

from malt.hosting.prefect_server import cached_database, copy_database


def cache_database(home: Path) -> None:
    """Put there the empty database that set-up cached: a server without one makes its own, in 3 s of CPU."""
    copy_database(cached_database(), home / ".cache" / "malt" / f"prefect-{version('prefect')}.db")
