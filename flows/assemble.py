"""store -> dataset version. No generator, verifier or refiner is asked anything."""

import time

from prefect import flow
from prefect.client.schemas.objects import State

from flows.generate import grow_by_shard
from malt.config.settings import Settings
from malt.config.spec import Role, RunSpec
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.job import read_inputs
from malt.engine.summary import RunSummary
from malt.llm.usage import Tally, Usage
from malt.models.playing import with_weights
from malt.trees.pipeline import NOTHING_MISSING, Shortfall, asks_judge
from tasks.growing import Grown
from tasks.leasing import alone
from tasks.publishing import ended, publish


@flow(name="assemble", flow_run_name="{spec.name}")
async def assemble(spec: RunSpec) -> State[RunSummary]:
    """Publish the trees that the store holds whole; a judge is asked for the grades it has not given yet."""
    started, spec = time.monotonic(), with_weights(spec)
    inputs, settings = read_inputs(spec), Settings()
    judged = Grown(NOTHING_MISSING, Tally())
    if asks_judge(spec):
        async with alone(spec.name) as run:
            judged = await grow_by_shard(inputs, spec, settings, frozenset({Role.EVALUATOR}), run)
    assembled = await publish(inputs, spec, settings)
    tally = judged.tally if asks_judge(spec) else tally_of(assembled.version)
    found = Grown(Shortfall(assembled.failures, judged.shortfall.stopped), tally)
    return await ended(spec, inputs, found, assembled.version, time.monotonic() - started)


def tally_of(version: DatasetVersion | None) -> Tally:
    """Count what a version took from the store."""
    nodes = {} if version is None else version.manifest.counts.nodes
    return Tally({role: Usage(cached_completions=nodes.get(role, 0)) for role in Role})
