"""dataset version -> a trained role each -> model version. Run again, it trains only what no model version has."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.utilities.annotations import quote

from malt.concurrency import run_to_end
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import open_version
from malt.models.publishing import TrainedRole
from malt.models.version import ModelVersion
from malt.training.job import RoleJob
from malt.training.process import Stopper, check_installed
from malt.training.run import (
    Prepared,
    TrainSummary,
    find_trained,
    known_role,
    prepare,
    read_train_spec,
    result_of,
    summarise,
)
from tasks.artifacts import tag_run
from tasks.ends import close_after_crash
from tasks.run_lock import only_run_of
from tasks.slots import TRAINING, hold_slots
from tasks.training import announce_models, publish_models, train_role
from tasks.versions import asset_key

_STOP_LIMIT_S = 120.0
"""Seconds a training may take to leave a checkpoint, or its models to be published."""


@flow(name="train", flow_run_name="train {version}", on_crashed=[close_after_crash])
async def train(
    version: str, config: str = "", earlier: Sequence[str] = (), spec: TrainSpec | None = None
) -> TrainSummary:
    """Train the roles of a dataset version, one after the other, and publish what comes of it.

    Args:
        version: Dataset version: NAME (the newest), or NAME@v3.
        config: TOML file, as the worker sees it, whose [train] is taken. Empty: the one that the version was made with.
        earlier: Further versions whose rows are trained on before those of this one.
        spec: What takes the place of [train].
    """
    started = time.monotonic()
    opened = open_version(version)
    chosen = spec or read_train_spec(opened, Path(config) if config else None)
    prepared = prepare(opened, chosen, Settings(), earlier)
    await tag_run(f"dataset:{opened.name}", f"model:{prepared.base.name}")
    async with only_run_of(f"train-{prepared.name}"):
        return await _train(prepared, started)


async def _train(prepared: Prepared, started: float) -> TrainSummary:
    """Train and publish what no model version has, once nobody else does."""
    if (version := find_trained(prepared)) is not None:
        return summarise(prepared, version, set(version.manifest.roles), time.monotonic() - started)
    check_installed()
    known = {job.role: known_role(job, prepared) for job in prepared.jobs}
    await _train_roles([job for job in prepared.jobs if known[job.role] is None])
    published = await _publish(prepared, {job.role: known[job.role] or result_of(job) for job in prepared.jobs})
    cached = {role for role, trained in known.items() if trained}
    summary = summarise(prepared, published, cached, time.monotonic() - started)
    await announce_models(summary)
    return summary


async def _train_roles(jobs: Sequence[RoleJob]) -> None:
    stopper = Stopper()
    async with hold_slots([TRAINING], 1):
        for job in jobs:  # two at once would only share the processors, and need the memory of both
            train_it = train_role.with_options(refresh_cache=not job.done.exists())  # its files may have been removed
            await run_to_end(partial(train_it, job, stopper), stopper.stop, _STOP_LIMIT_S)


async def _publish(prepared: Prepared, roles: dict[Role, TrainedRole]) -> ModelVersion:
    named = publish_models.with_options(
        assets=[asset_key("models", prepared.name)],
        asset_deps=[asset_key("datasets", each.name) for each in prepared.versions],
    )
    handed_over: Any = quote(prepared), quote(roles)
    return await run_to_end(partial(named, prepared.name, *handed_over), lambda: None, _STOP_LIMIT_S)
