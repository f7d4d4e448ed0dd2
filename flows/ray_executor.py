"""Batches on Ray: a local cluster that lives as long as the run, or the one that RAY_ADDRESS names."""

import logging
import os
from typing import Any

import ray
from prefect_ray import RayTaskRunner
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.executors import Executor
from flows.worker_check import find_problem, serialize_prefect_settings
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.errors import ConfigError
from malt.llm.store.database import hide_password

DEATH_ERRORS = (WorkerCrashedError, OutOfMemoryError, NodeDiedError)


def open_cluster(processes: int, spec: RunSpec, settings: Settings) -> Executor:
    """Connect to a cluster; each batch takes one of its CPUs. Raises `ConfigError` if that fails."""
    address = os.environ.get("RAY_ADDRESS")
    named = f"run.task_runner = 'ray', RAY_ADDRESS = {address!r}"
    if address and settings.store.startswith("sqlite"):
        raise ConfigError(
            f"RAY_ADDRESS = {address!r} may spread over machines, and the store {hide_password(settings.store)} is a "
            "file of this one: set MALT_STORE_URL to a PostgreSQL database"
        )
    own = {} if address else {"num_cpus": processes, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:  # no cluster there, or one of another version
        raise ConfigError(f"{named}: {error}") from error
    if address:
        check_nodes(named, spec, settings)
    workers = int(ray.cluster_resources().get("CPU", 1))
    shares = spec.limits.shares(min(workers, spec.limits.most_shares), workers)
    runner = StoppableRay()
    return Executor(runner, shares, runner.interrupt, DEATH_ERRORS)


def check_nodes(named: str, spec: RunSpec, settings: Settings) -> None:
    """Raise `ConfigError` if a machine of a cluster cannot take part; installed versions are not compared."""
    for node in (node for node in ray.nodes() if node["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = ray.remote(find_problem).options(num_cpus=0, scheduling_strategy=there)
        try:
            problem = ray.get(asked.remote(spec, settings, serialize_prefect_settings()))
        except RayError as error:
            problem = str(error).strip().splitlines()[-1]
        if problem:
            ray.shutdown()
            raise ConfigError(f"{named}: the node {node['NodeManagerAddress']} cannot take part: {problem}")


class StoppableRay(RayTaskRunner):  # type: ignore[misc]  # Ray is not installed for type checks
    """A runner that can interrupt its tasks, and that leaves the cluster at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._submitted: list[Any] = []

    def submit(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - the parent has no types
        """Submit a task, and remember it for `interrupt`."""
        self._submitted.append(super().submit(*arguments, **named))
        return self._submitted[-1]

    def interrupt(self) -> None:
        """Raise `KeyboardInterrupt` in every running batch, which then closes its session and ends."""
        for future in list(self._submitted):
            ray.cancel(future.wrapped_future)

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        ray.shutdown()
