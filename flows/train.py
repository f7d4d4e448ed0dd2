"""Flow `train`: dataset version -> trained roles -> model version. A rerun trains only what no model version has."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.utilities.annotations import quote

from malt.concurrency import run_to_end
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import open_version
from malt.models.publishing import TrainedRole
from malt.models.version import ModelVersion
from malt.training.job import RoleJob
from malt.training.process import Stopper
from malt.training.run import (
    Prepared,
    TrainSummary,
    find_trained,
    prepare,
    read_train_spec,
    train_prepared,
)
from tasks.artifacts import asset_key, tag_run
from tasks.run_lock import close_after_crash, only_run_of
from tasks.slots import TRAINING, hold_slots
from tasks.training import announce_models, publish_models, train_role

_STOP_LIMIT_S = 120.0
"""Seconds that a stopped training may take to write a checkpoint or to finish publishing."""


@flow(name="train", flow_run_name="train {version}", on_crashed=[close_after_crash])
async def train(
    version: str, config: str = "", earlier: Sequence[str] = (), spec: TrainSpec | None = None
) -> TrainSummary:
    """Train the roles of a dataset version, one after the other, and publish a model version.

    Args:
        version: Dataset version: NAME (the newest), or NAME@v3.
        config: Path of the TOML file on the worker whose [train] is used. Empty: the config that made the version.
        earlier: Further versions whose rows are trained on before those of this one.
        spec: Training settings in place of [train].
    """
    opened = open_version(version)
    chosen = spec or read_train_spec(opened, Path(config) if config else None)
    prepared, stopper = prepare(opened, chosen, Settings(), earlier), Stopper()
    await tag_run(f"dataset:{opened.name}", f"model:{prepared.base.name}")
    async with only_run_of(f"train-{prepared.name}"):
        wanted = [TRAINING] if find_trained(prepared) is None else []
        tell = partial(get_run_logger().info, "models %(models)s: waiting for %(holder)s")
        async with hold_slots(wanted, 1):
            work = partial(train_prepared, prepared, partial(_train_roles, stopper), _publish, tell, stopper)
            summary = await run_to_end(work, stopper.stop, _STOP_LIMIT_S)
        if summary.created:
            await announce_models(summary)
    return summary


def _train_roles(stopper: Stopper, jobs: Sequence[RoleJob]) -> None:
    for job in jobs:  # one by one: two at once would share the processors and need the memory of both
        train_role.with_options(refresh_cache=not job.done.exists())(job, stopper)  # cached files may have been removed


def _publish(prepared: Prepared, roles: dict[Role, TrainedRole]) -> ModelVersion:
    named = publish_models.with_options(
        assets=[asset_key("models", prepared.name)],
        asset_deps=[asset_key("datasets", each.name) for each in prepared.versions],
    )
    arguments: Any = quote(prepared), quote(roles)
    return named(prepared.name, *arguments)
