"""Commands that take a version elsewhere: `export`, `push`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli import terminal
from malt.cli.options import find_role, open_any, takes_json, takes_version

if TYPE_CHECKING:
    from malt.cli.options import AnyVersion
    from malt.datasets.export.export import Exported
    from malt.datasets.push.files import Pushed
    from malt.questions.screening import Split


class _ListsFormats(click.Command):
    """A command whose help ends with the formats; they are imported for that alone."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's own
        from malt.datasets.export.formats import FORMATS

        with formatter.section("Formats"):
            formatter.write_dl([(name, form.about) for name, form in FORMATS.items()])


@click.command(cls=_ListsFormats)
@takes_version
@click.option("--to", required=True, metavar="FORMAT", help="One of the formats below.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Only this role; may be repeated. Default: all.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only sft, dpo or kto rows; may be repeated.")
@click.option("--split", type=click.Choice(["train", "validation"]), help="Only this split. Default: both.")
@takes_json
def export(
    version: str,
    to: str,
    directory: Path,
    roles: tuple[str, ...],
    kinds: tuple[str, ...],
    split: "Split | None",
    as_json: bool,
) -> None:
    """Write a version's rows in another trainer's format. DIR is a new or empty folder, or an earlier export."""
    from malt.datasets.export.export import RowChoice
    from malt.datasets.export.export import export as export_version
    from malt.datasets.version.dataset_version import open_version

    choice = RowChoice(tuple(map(find_role, roles)), kinds, (split,) if split else ())
    exported = export_version(open_version(version), to, directory, choice)
    _show_export_warnings(exported)
    terminal.emit(exported.as_json()) if as_json else _show_export(exported)


def _show_export(exported: "Exported") -> None:
    manifest = exported.manifest
    terminal.say(f"{manifest.reference} as {manifest.format}: {terminal.shorten_path(exported.path)}")
    terminal.show_rows({file.path: file.rows for file in manifest.files})
    for file in manifest.files:
        if file.left_out:
            counted = ", ".join(f"{count:,} {why}" for why, count in sorted(file.left_out.items()))
            terminal.say(f"  left out of {file.path}: {counted}")


def _show_export_warnings(exported: "Exported") -> None:
    for warning in exported.warnings:
        terminal.warn(f"warning: {warning}")
    splits = {"train", *(file.split for file in exported.manifest.files)}
    empty = [file.path for file in exported.manifest.empty if file.split in splits]
    if empty:
        terminal.warn(f"warning: not written, as they would have no rows: {', '.join(empty)}")


@click.command()
@takes_version
@click.argument("dest", metavar="DEST")
@click.option("--public", is_flag=True, help="Let anyone read it: a repository on the Hub is private otherwise.")
@takes_json
def push(version: str, dest: str, public: bool, as_json: bool) -> None:
    """Put a version where others read it, and check it there.

    DEST is hf://datasets/OWNER/NAME (models: hf://OWNER/NAME), s3://bucket/prefix, any URL that fsspec knows, or a
    folder. Only what is missing is sent, and nothing that is there is overwritten. On the Hub it becomes one commit and
    a tag, and a model's card on main tells what evaluations of it found; elsewhere it lands in DEST/<name>/v<N>/.
    Credentials come from the environment.
    """
    from malt.datasets.push.push import push as push_version

    opened = open_any(version)
    pushed = push_version(opened, dest, public=public, card=_write_card(opened))
    terminal.show_report(pushed, _show_pushed, as_json=as_json)


def _write_card(version: "AnyVersion") -> str | None:
    """Write a model's card with what evaluations of it found; None where there are none."""
    from malt.evaluation.card import find_results, render_model_card
    from malt.models.version import ModelVersion

    results = find_results(version) if isinstance(version, ModelVersion) else []
    return render_model_card(version, results) if isinstance(version, ModelVersion) and results else None


def _show_pushed(pushed: "Pushed") -> None:
    readers = {None: "", True: " (private)", False: " (public)"}[pushed.private]
    if pushed.sent:
        terminal.say(f"{pushed.version} is at {pushed.url}{readers}")
        terminal.say(f"  sent      {pushed.sent} files, {pushed.bytes:,} bytes; {pushed.skipped} were there already")
    else:
        terminal.say(f"{pushed.version} was at {pushed.url}{readers} already; nothing was sent")
    if pushed.card is not None:
        terminal.say(f"  card      tells what evaluations found, on main ({pushed.card[:12]})")
    terminal.say(f"  verified  {pushed.verified} files by their digests there")
