"""Flow `assemble`: store -> dataset version. Only a judge may be asked; generator, verifier and refiner are not."""

import time
from dataclasses import replace

from prefect import flow
from prefect.client.schemas.objects import State

from flows.executors import ask_in_shards
from malt.config.roles import Role
from malt.config.spec import RunSpec
from malt.engine.build import RunSummary
from malt.engine.job import list_models, read_job
from malt.engine.run import Run
from malt.engine.runner import assembled, fill_grades
from tasks.artifacts import tag_by_spec
from tasks.publishing import end_flow, publish
from tasks.run_lock import close_after_crash, only_run_of
from tasks.slots import share_endpoints


@flow(name="assemble", flow_run_name="{spec.name}", on_crashed=[close_after_crash])
async def assemble(spec: RunSpec) -> State[RunSummary]:
    """Publish the complete trees in the store; a judge is asked for missing grades."""
    started = time.monotonic()
    await tag_by_spec(spec)
    async with only_run_of(spec.name) as name:
        job = read_job(spec)
        async with share_endpoints(job.spec, list_models(job.spec, {Role.EVALUATOR})) as limited:
            judged = await fill_grades(replace(job, spec=limited), Run(name), ask_in_shards)
        built = await publish(job, ())
    return await end_flow(job, assembled(job, judged, built), built, time.monotonic() - started)
