"""Checks that a worker on another machine can take part in a run, made before any model is asked."""

import asyncio
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from prefect.context import hydrated_context, serialize_context
from prefect.settings import PREFECT_API_URL

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import check_models
from malt.errors import ConfigError, MaltError
from malt.hosting.private_prefect import check_answers
from malt.llm.store.samples import Store
from tasks.growing import with_block_keys


def read_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of some packages here."""
    return {"Python": platform.python_version(), **{name: version(name) for name in packages}}


def find_version_mismatch(wanted: dict[str, str]) -> str | None:
    """On a worker, return a message on the first version that differs from the run's, or None."""
    here = read_versions(wanted.keys() - {"Python"})
    for name, needed in wanted.items():
        if here[name] != needed:
            return f"it has {name} {here[name]}, and this run {needed}; install the same"
    return None


def serialize_prefect_settings() -> dict[str, Any]:
    """Return the settings with which this run's workers reach Prefect's server."""
    return {"settings_context": serialize_context()["settings_context"]}


def find_problem(spec: RunSpec, settings: Settings, prefect: dict[str, Any]) -> str | None:
    """On a worker, return why a run cannot work here, or None: store or Prefect not reachable, a missing key."""
    try:
        Store(settings.store).close()
        with hydrated_context(prefect):
            _check_prefect(PREFECT_API_URL.value() or "")
            check_models(asyncio.run(with_block_keys(spec)))
    except MaltError as error:
        return str(error)
    return None


def _check_prefect(api_url: str) -> None:
    try:
        check_answers(api_url)
    except ConfigError as error:
        raise ConfigError(
            f"it cannot reach the run's Prefect server, {api_url}; where the run is started, set PREFECT_API_URL to a "
            "server that all workers reach"
        ) from error
