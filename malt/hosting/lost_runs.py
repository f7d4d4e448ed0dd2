"""Runs under way when `malt up` was killed: the next one marks them as crashed, so that Retry goes on with them."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

import psutil

from malt.errors import ConfigError
from malt.hosting.access import post_json

WORKER = f"malt up on {socket.gethostname()}"
"""Name of this machine's worker, which Prefect labels its runs with."""
_UNDER_WAY = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}, "limit": 200}
_CRASHED = {"type": "CRASHED", "message": "`malt up` and its worker were killed, and this run with them."}


def mark_lost_runs(api_url: str, timeout_s: float) -> list[str]:
    """Mark as crashed the runs of this machine's worker whose process is gone; return their names."""
    status, found = post_json(f"{api_url}/flow_runs/filter", _UNDER_WAY, timeout_s)
    if status != 200:
        raise ConfigError(f"{api_url}: its runs cannot be read: {status} {found}")
    ours = [run for run in found if run["labels"].get("prefect.worker.name") == WORKER]
    lost = [run for run in ours if run["infrastructure_pid"] and not _is_alive(run)]
    for run in lost:
        post_json(f"{api_url}/flow_runs/{run['id']}/set_state", {"state": _CRASHED, "force": True}, timeout_s)
    return [run["name"] for run in lost]


def describe_lost_runs(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        yield f"{name}: was under way when `malt up` was killed; marked as crashed, Retry asks for what is missing"


def _is_alive(run: dict[str, Any]) -> bool:
    """Whether a run's process is there: one of its number that began later is another one."""
    with suppress(psutil.NoSuchProcess, ValueError):
        created = psutil.Process(int(run["infrastructure_pid"])).create_time()
        began = run["start_time"] or run["state"]["timestamp"]
        return bool(created <= datetime.fromisoformat(began).timestamp())
    return False
