"""Publishing under Prefect: the dataset version, and the artifacts that tell about it."""

import asyncio

from prefect import task
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.pages.markdown import figures_markdown
from malt.datasets.pages.page import REPORT_FILE
from malt.datasets.version.dataset_version import DatasetVersion
from malt.engine.build import Assembled, assemble_version
from malt.engine.job import Inputs
from malt.engine.summary import RunSummary, summarise
from tasks.comparing import tell_changes
from tasks.growing import Grown, whole
from tasks.telling import told

FAILURES_SHOWN = 200
"""Rows of the table of failed branches; the manifest has all of them."""


@task(name="publish dataset", task_run_name="publish {name}", cache_policy=NO_CACHE)
def publish_dataset(name: str, inputs: Inputs, spec: RunSpec, settings: Settings) -> Assembled:  # noqa: ARG001 - names the task run
    """Make a version of the trees that the store holds whole."""
    return assemble_version(inputs, spec, settings)


async def publish(inputs: Inputs, spec: RunSpec, settings: Settings) -> Assembled:
    """Run `publish_dataset` beside the flow's loop: it takes long, and runs a loop of its own."""
    return await asyncio.to_thread(publish_dataset, spec.name, whole(inputs), whole(spec), settings)


async def ended(spec: RunSpec, inputs: Inputs, grown: Grown, version: DatasetVersion | None, wall_s: float) -> State:
    """Return a flow's last state: `Failed` where something is missing, so that the UI offers *Retry*; `Waiting` where
    batches are under way, which the next scheduled run goes on with.
    """
    summary = summarise(spec.name, len(inputs.questions), grown.tally, grown.shortfall, version, wall_s)
    await announce(summary)
    if version is not None:
        await show_figures(version)
        await tell_changes(version)
    if summary.waits is not None:
        return Completed(name="Waiting", message=summary.sentence, data=summary)
    state = Failed if summary.exit_code else Completed
    return state(message=summary.sentence, data=summary)


async def announce(summary: RunSummary) -> None:
    """Put the run's figures, and its failed branches, where Prefect shows them."""
    key = f"{summary.dataset}-summary"
    await told(acreate_markdown_artifact(summary.markdown, key=key, description=summary.sentence))
    if summary.failures:
        await told(
            acreate_table_artifact(
                [failure._asdict() for failure in summary.failures[:FAILURES_SHOWN]],
                key=f"{summary.dataset}-failed-branches",
                description=f"{summary.failed_branches} branches that could not be had; Retry asks for just those",
            )
        )


async def show_figures(version: DatasetVersion) -> None:
    """Put the report's figures where Prefect shows them, and say where the report is."""
    report = version.path / REPORT_FILE
    where = (
        f"- dataset: `{version.path}`\n- report, with the trees: `{report}` (`malt report {version.reference} --open`)"
    )
    await told(
        acreate_markdown_artifact(
            f"# {version.reference}\n\n{where}\n\n{figures_markdown(version.manifest)}\n",
            key=f"{version.name}-report",
            description=f"the figures of {version.reference}",
        )
    )
