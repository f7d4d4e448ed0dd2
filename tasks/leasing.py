"""The lease under Prefect: a run's log says what it waits for, and names runs as the UI does."""

import logging
from contextlib import AbstractAsyncContextManager

from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from malt.llm.lease import lease
from malt.settings import Settings

logging.getLogger("malt").addHandler(APILogHandler())  # as PREFECT_LOGGING_EXTRA_LOGGERS would


def alone(dataset: str) -> AbstractAsyncContextManager[None]:
    """Be the only flow run that grows a dataset, once those before this one have ended."""
    return lease(dataset, Settings(), f"flow run {flow_run.name} ({(flow_run.id or '')[:8]})")
