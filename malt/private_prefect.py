"""The environment of a run that brings its own Prefect server. To be set before Prefect is imported."""

import os
from pathlib import Path

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command tells what happened; Prefect keeps its log
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}

SERVER = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # A task run costs the stock server 37.6 ms of CPU, with these 7.7.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "300",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",  # its server ends with the run: nobody would read them
}


def prepare_prefect(data_dir: Path) -> None:
    """Use the server at `PREFECT_API_URL`, or a private one that keeps its records in `<data_dir>/prefect`."""
    wanted = dict(QUIET)
    if not os.environ.get("PREFECT_API_URL"):
        wanted |= SERVER | {"PREFECT_HOME": str((data_dir / "prefect").resolve())}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
