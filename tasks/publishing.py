"""Publishing under Prefect: the dataset version, and its artifacts."""

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
"""Most rows in the table of failed branches; the manifest has all of them."""
MOST_NODES = 500_000
"""Most nodes of two versions that a run compares: at some 200 bytes of memory per node, about 100 MB."""


@materialize("malt://datasets/any", by="malt", task_run_name="publish {job.spec.name}", persist_result=False)
def publish_dataset(job: Job, trees: Sequence[object]) -> Built:
    """Build a version from the store's complete trees; `trees` graded in this run are not read again."""
    graded = [tree.assessed for tree in trees if isinstance(tree, Graded) and tree.assessed]
    built = build(job, {each.valued.tree.question.question_id: each for each in graded})
    if built.version is not None:
        tell_published(built.version)
    return built


async def publish(job: Job, trees: Sequence[Future]) -> Built:
    """Run `publish_dataset` in a thread: it takes long, and runs an event loop of its own."""
    arguments: Any = quote(job), allow_failure(trees)
    named = publish_dataset.with_options(assets=[asset_key("datasets", job.spec.name)])
    return await asyncio.to_thread(named, *arguments)


async def end_flow(job: Job, filled: Filled, built: Built | None, wall_s: float) -> State:
    """Return a flow's final state: `Failed` if something is missing, so that the UI offers *Retry*; `Waiting` if
    batches are under way, which the next scheduled run will collect.
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
    """Create artifacts of the run's figures and its failed branches."""
    key = f"{summary.dataset}-summary"
    await leave_markdown(summary.markdown, key, escape_markdown(summary.sentence))
    await leave_failures(summary.failures, f"{summary.dataset}-failed-branches")


async def leave_failures(failures: Sequence[FailedBranch], key: str) -> None:
    """Create a table artifact of the failed branches, if there are any."""
    description = f"{len(failures)} failed branches; Retry asks only for those"
    if failures:
        await leave(acreate_table_artifact(failure_rows(failures), key=key, description=description))


def failure_rows(failures: Sequence[FailedBranch]) -> list[dict[str, str]]:
    """Return the first failed branches as table rows; cells are escaped because Prefect renders Markdown."""
    shown = (failure._asdict() for failure in failures[:FAILURES_SHOWN])
    return [{name: escape_markdown(str(cell)) for name, cell in row.items()} for row in shown]


async def show_figures(version: DatasetVersion) -> None:
    """Create an artifact of the report's figures and the report's place."""
    report = await link_report(version.path, f"malt report {version.reference} --open")
    where = f"- dataset: {code_span(str(version.path))}\n- {report}"
    text = f"# {version.reference}\n\n{where}\n\n{figures_markdown(version.manifest)}\n"
    await leave_markdown(text, f"{version.name}-report", f"the figures of {version.reference}")


async def tell_changes(version: DatasetVersion) -> None:
    """Create an artifact of a new version's changes, if its parent version still exists."""
    parent, folder = version.manifest.parent, version.path.parent
    if not version.created or parent is None or parent.version not in version_numbers(folder):
        return
    before = open_folder(folder / f"v{parent.version}")
    changed = await asyncio.to_thread(changes, before, version)
    await leave_markdown(changed, f"{version.name}-changes", f"{before.reference} -> {version.reference}")


def changes(before: DatasetVersion, after: DatasetVersion) -> str:
    """Return the changes as Markdown; for large versions, the command that lists them."""
    from malt.datasets.check.compare import compare  # late: it imports pandas, which would delay a run's first request

    if nodes_of(before) + nodes_of(after) <= MOST_NODES:
        return compare(before, after, 0).markdown
    return (
        f"`{before.reference}` has {nodes_of(before):,} nodes, `{after.reference}` {nodes_of(after):,}: too many to "
        f"compare during a run. To compare: `malt diff {before.reference} {after.reference}`\n"
    )


def nodes_of(version: DatasetVersion) -> int:
    return version.manifest.files[TRAJECTORIES_FILE].rows or 0
