"""What `malt train` and `malt models` print."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from malt.cli.console.terminal import err, from_here, out, table_of

if TYPE_CHECKING:
    from malt.errors import VersionError
    from malt.models.version import ModelVersion
    from malt.training.plan import TrainPlan
    from malt.training.run import TrainSummary

Tell = Callable[[Mapping[str, Any]], None]
PLAIN_EVERY_S = 10.0
"""How often a line is printed where there is no terminal."""
COUNTED = ("rows", "trained", "median", "longest", "max_length", "tokens", "steps")
"""What a plan counts of a stage."""


@contextmanager
def progress() -> Iterator[Tell]:
    """Show on stderr how training goes: a bar a stage on a terminal, a line now and then elsewhere."""
    if not err.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("{task.description:<13}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns, console=err) as bars:
        yield Bars(bars)


class Lines:
    """Prints a line at the first and last step of a stage, and now and then between."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take what a training process tells."""
        if event["event"] != "step":
            return
        is_edge = event["step"] in (1, event["steps"])
        if is_edge or time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            err.print(f"{event['role']} {event['stage']} {event['step']}/{event['steps']}: {how_it_goes(event)}")


class Bars:
    """Keeps a bar a role and stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._tasks = bars, dict[str, Any]()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take what a training process tells."""
        if event["event"] == "step":
            name = f"{event['role']} {event['stage']}"
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=event["steps"], at="")
            self._bars.update(self._tasks[name], completed=event["step"], at=how_it_goes(event))


def how_it_goes(event: Mapping[str, Any]) -> str:
    """Write loss, speed and time left."""
    left = f"{event['left_s']:.0f} s left" if event["left_s"] < 120 else f"{event['left_s'] / 60:.0f} min left"
    return f"loss {event['loss']:.4f}, {event['tokens_per_s']:,.0f} tokens/s, {left}"


def show_summary(summary: "TrainSummary") -> None:
    """Print what was trained, and how to use it."""
    table = table_of("role", "stage.", "rows", "trained", "steps", "first loss", "last loss", "seconds")
    for role, trained in summary.roles.items():
        for stage in trained.stages.values():
            figures = (f"{stage.rows:,}", f"{stage.trained:,}", f"{stage.steps:,}")
            losses = (f"{stage.loss_first:.4f}", f"{stage.loss_last:.4f}")
            table.add_row(role, stage.stage, *figures, *losses, "known" if trained.cached else f"{stage.wall_s:.0f}")
    out.print(table)
    for line in summary.skipped:
        out.print(f"not trained: {line}")
    reference = f"{summary.models}@v{summary.version}"
    state = "" if summary.created else ", as it was already"
    out.print(f"{reference}{state}: {from_here(summary.path)}")
    out.print(f'a role is played by it with: model = "{reference}"')


def listing(versions: "Sequence[ModelVersion]", unreadable: "Mapping[str, VersionError]") -> JsonValue:
    """Return model versions as JSON, and why others cannot be read."""
    return {
        "versions": [
            {
                "name": version.name,
                "version": version.number,
                "path": str(version.path),
                "created_at": version.manifest.created_at.isoformat(),
                "content_sha256": version.manifest.content_sha256,
                "base": version.manifest.base.name,
                "dataset": dataset_of(version),
                "roles": [*version.manifest.roles],
            }
            for version in versions
        ],
        "unreadable": {reference: str(error) for reference, error in unreadable.items()},
    }


def show_models(versions: "Sequence[ModelVersion]", unreadable: "Mapping[str, VersionError]") -> None:
    """Print one line a version; on stderr for those that cannot be read."""
    for reference, error in unreadable.items():
        err.print(f"error: {reference}: {escape(str(error))}")
    if not versions:
        out.print("no models yet; train some with: malt train DATASET")
        return
    table = table_of("version", "roles.", "base.", "trained on.", "content.", "made.")
    for version in versions:
        manifest = version.manifest
        made = f"{manifest.created_at:%Y-%m-%d %H:%M}"
        roles = ", ".join(manifest.roles)
        digest = manifest.content_sha256[:12]
        table.add_row(version.reference, roles, manifest.base.name, dataset_of(version), digest, made)
    out.print(table)


def dataset_of(version: "ModelVersion") -> str:
    """Name what a version was trained on."""
    return f"{version.manifest.dataset.name}@v{version.manifest.dataset.version}"


def show_plan(plan: "TrainPlan") -> None:
    """Print what training would take."""
    sizes = f"{plan.parameters / 1e6:,.0f} M numbers, {plan.trainable / 1e6:,.1f} M of them trained"
    out.print(f"{plan.models}: {plan.dataset} on {plan.base} ({sizes}), {plan.device}")
    table = table_of("role", "stage.", *COUNTED, "GB", "s")
    for role, quoted in plan.roles.items():
        for name, stage in quoted.stages.items():
            counts = (getattr(stage, count) for count in COUNTED)
            time_left = "known" if quoted.known else f"{stage.seconds:,.0f}"
            table.add_row(role, name, *(f"{count:,}" for count in counts), f"{stage.memory_gb:.1f}", time_left)
    out.print(table)
    for line in plan.skipped:
        out.print(f"not trained: {line}")
    for stage in (stage for quoted in plan.roles.values() for stage in quoted.stages.values()):
        if stage.refused:
            out.print(f"refused: {stage.refused}")
    out.print(f"about {plan.seconds / 60:,.0f} min and {plan.memory_gb:.1f} GB; reckoned from a probe of half a second")
