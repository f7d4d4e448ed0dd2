"""Publishing under Prefect: the dataset version, and the artifacts that tell about it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect import allow_failure
from prefect.artifacts import acreate_table_artifact
from prefect.assets import materialize
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.utilities.annotations import quote

from malt.datasets.pages.card import figures_markdown
from malt.datasets.rows.tables import TRAJECTORIES_FILE
from malt.datasets.version.dataset_version import DatasetVersion, open_folder
from malt.datasets.version.folders import version_numbers
from malt.engine.build import Built, RunSummary, build, summarise
from malt.engine.job import Job
from malt.engine.run import Filled
from malt.sanitize import code_span, escape_markdown
from malt.trees.tree import FailedBranch
from tasks.artifacts import asset_key, leave, leave_markdown, link_report, tell_published
from tasks.growing import Future, Graded

FAILURES_SHOWN = 200
"""Rows of the table of failed branches; the manifest has all of them."""
MOST_NODES = 500_000
"""Of two versions together: comparing takes some 200 bytes of memory a node, and a run shall not need more than it."""


@materialize("malt://datasets/any", by="malt", task_run_name="publish {job.spec.name}", persist_result=False)
def publish_dataset(job: Job, trees: Sequence[object]) -> Built:
    """Make a version of the trees that the store holds whole; those graded by this run are not read again."""
    graded = [tree.assessed for tree in trees if isinstance(tree, Graded) and tree.assessed]
    built = build(job, {each.valued.tree.question.question_id: each for each in graded})
    if built.version is not None:
        tell_published(built.version)
    return built


async def publish(job: Job, trees: Sequence[Future]) -> Built:
    """Run `publish_dataset` beside the flow's loop: it takes long, and runs a loop of its own."""
    handed_over: Any = quote(job), allow_failure(trees)
    named = publish_dataset.with_options(assets=[asset_key("datasets", job.spec.name)])
    return await asyncio.to_thread(named, *handed_over)


async def end_flow(job: Job, filled: Filled, built: Built | None, wall_s: float) -> State:
    """Return a flow's last state: `Failed` where something is missing, so that the UI offers *Retry*; `Waiting` where
    batches are under way, which the next scheduled run goes on with.
    """
    summary = summarise(job, filled, built, wall_s)
    await announce(summary)
    if built is not None and built.version is not None:
        await show_figures(built.version)
        await tell_changes(built.version)
    if summary.waits is not None:
        return Completed(name="Waiting", message=summary.sentence, data=summary)
    state = Failed if summary.exit_code else Completed
    return state(message=summary.sentence, data=summary)


async def announce(summary: RunSummary) -> None:
    """Put the run's figures, and its failed branches, where Prefect shows them."""
    key = f"{summary.dataset}-summary"
    await leave_markdown(summary.markdown, key, escape_markdown(summary.sentence))
    await leave_failures(summary.failures, f"{summary.dataset}-failed-branches")


async def leave_failures(failures: Sequence[FailedBranch], key: str) -> None:
    """Leave a table of the branches that failed, where some did."""
    told = f"{len(failures)} branches that could not be had; Retry asks for just those"
    if failures:
        await leave(acreate_table_artifact(failure_rows(failures), key=key, description=told))


def failure_rows(failures: Sequence[FailedBranch]) -> list[dict[str, str]]:
    """Return the first failed branches as rows of a table, whose cells Prefect reads as Markdown."""
    shown = (failure._asdict() for failure in failures[:FAILURES_SHOWN])
    return [{name: escape_markdown(str(cell)) for name, cell in row.items()} for row in shown]


async def show_figures(version: DatasetVersion) -> None:
    """Put the report's figures where Prefect shows them, and say where the report is."""
    report = await link_report(version.path, f"malt report {version.reference} --open")
    where = f"- dataset: {code_span(str(version.path))}\n- {report}"
    text = f"# {version.reference}\n\n{where}\n\n{figures_markdown(version.manifest)}\n"
    await leave_markdown(text, f"{version.name}-report", f"the figures of {version.reference}")


async def tell_changes(version: DatasetVersion) -> None:
    """Leave an artifact of what a new version changed, where the one before it is still there."""
    parent, folder = version.manifest.parent, version.path.parent
    if not version.created or parent is None or parent.version not in version_numbers(folder):
        return
    before = open_folder(folder / f"v{parent.version}")
    changed = await asyncio.to_thread(changes, before, version)
    await leave_markdown(changed, f"{version.name}-changes", f"{before.reference} -> {version.reference}")


def changes(before: DatasetVersion, after: DatasetVersion) -> str:
    """Tell in Markdown what changed; of large versions, how that is found out."""
    from malt.datasets.check.compare import compare  # not before: a run's first request would wait for pandas

    if nodes_of(before) + nodes_of(after) <= MOST_NODES:
        return compare(before, after, 0).markdown
    return (
        f"`{before.reference}` has {nodes_of(before):,} nodes, `{after.reference}` {nodes_of(after):,}: too many to "
        f"compare beside a run. This does: `malt diff {before.reference} {after.reference}`\n"
    )


def nodes_of(version: DatasetVersion) -> int:
    return version.manifest.files[TRAJECTORIES_FILE].rows or 0
