"""Prints the start-up time of `malt`: `python -m benchmarks.startup`.

The first request of a `malt run` is timed with a private Prefect server: without a database to copy, in a new data
folder (set-up, or an earlier run, has left a database to copy), and in a used one; then with a server that
is already up. CPU is that of the run and its children until that request.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.throughput import MALT, command_of, figures_of, provider, stats, watch, write_config
from malt.hosting.private_prefect import PrefectServer

ROUNDS = 3


def first_request(folder: Path, url: str) -> tuple[float, float]:
    """Run two questions in a folder; return the seconds, and the CPU seconds, to the first request."""
    config = write_config(folder, url, questions=2, in_flight=8)
    for stored in ("store.db", "store.db-wal", "store.db-shm"):
        (folder / "data" / stored).unlink(missing_ok=True)  # otherwise no request is needed
    stats(url)
    figures = figures_of(watch(command_of("shard", folder, url, config, 8), folder), stats(url))
    return figures.first_request_s, figures.startup_cpu_s


def measure(url: str) -> dict[str, list[tuple[float, float]]]:
    """Start runs in the four ways, in alternation."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            first, second = Path(name, "first"), Path(name, "second")
            os.environ["XDG_CACHE_HOME"] = name  # an empty cache: there is no database to copy
            for database, folder in (("none made yet", first), ("new folder", second), ("existing", second)):
                folder.mkdir(exist_ok=True)
                seen.setdefault(f"private server, {database}", []).append(first_request(folder, url))
            with running_server():
                seen.setdefault("running server", []).append(first_request(second, url))
    return seen


@contextmanager
def running_server() -> Iterator[None]:
    """Run a server, and name it in the environment of `malt run`."""
    with tempfile.TemporaryDirectory() as home:
        server = PrefectServer(Path(home))
        server.wait_until_ready()
        os.environ.update(server.client_settings)
        try:
            yield
        finally:
            del os.environ["PREFECT_API_URL"]
            server.stop()


def help_s() -> float:
    """Return the duration of `malt --help` in seconds."""
    started = time.monotonic()
    subprocess.run([MALT[0], "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Print the table."""
    with provider(0.05) as url:
        seen = measure(url)
    print(f"{os.cpu_count()} processors; medians of {ROUNDS} rounds\n")
    print("| | first request s | CPU s until then |\n|---|---:|---:|")
    for name, figures in seen.items():
        first, cpu = map(median, zip(*figures, strict=True))
        print(f"| {name} | {first:.1f} | {cpu:.1f} |")
    print(f"| `malt --help` (its end) | {median(help_s() for _ in range(ROUNDS)):.2f} | |")


if __name__ == "__main__":
    main()
