"""Flow `evaluate`: held-out questions -> answers of systems -> evaluation version. A rerun asks for what is missing."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.utilities.annotations import quote

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.evaluation.evaluate import Evaluated, name_lock
from malt.evaluation.job import check_systems, read_evaluation
from tasks.artifacts import asset_key, tag_by_spec
from tasks.evaluating import answer_questions, end, publish_evaluation
from tasks.growing import with_block_keys
from tasks.run_lock import close_after_crash, only_run_of
from tasks.slots import share_endpoints


@flow(name="evaluate", flow_run_name="evaluate {spec.name}", on_crashed=[close_after_crash])
async def evaluate(spec: RunSpec) -> State[Evaluated]:
    """Compare the systems of a config on held-out questions, paired by question, and publish the result."""
    job, settings = read_evaluation(await with_block_keys(spec)), Settings()
    await tag_by_spec(spec, job.models)
    check_systems(job)
    async with only_run_of(name_lock(job)) as run:
        async with share_endpoints(job.spec, job.models) as limited:
            # Quoted, so that Prefect does not search it for other tasks' results.
            asked: Any = quote(job._replace(spec=limited))
            filled = await answer_questions(spec.name, asked, settings, run)
        held: Any = quote(filled.job._replace(spec=job.spec))
        named = publish_evaluation.with_options(assets=[asset_key("evaluations", spec.name)])
        published = None if filled.shortfall.stopped else await named(spec.name, held, settings)
    return await end(filled, published)
