"""Commands that keep and share versions: `tag`, `export`, `push`, `rebuild`, `rm`, `gc`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from malt.cli import terminal
from malt.cli.options import find_role, open_any, takes_json, takes_version, trusts_code
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.cli.options import AnyVersion
    from malt.datasets.export.export import Exported
    from malt.datasets.export.tool_files import ExportManifest
    from malt.datasets.publish.removal import Garbage
    from malt.datasets.push.files import Pushed
    from malt.engine.rebuild import Rebuilt
    from malt.questions.screening import Split


_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}


@click.command()
@takes_version
@click.argument("tag", metavar="TAG")
@click.option("--move", is_flag=True, help="Move the tag from the version that has it now.")
@click.option("--remove", is_flag=True, help="Remove the tag from VERSION's dataset.")
@takes_json
def tag(version: str, tag: str, move: bool, remove: bool, as_json: bool) -> None:
    """Give a version a name of your own. NAME@TAG opens it; a tagged version is never removed."""
    from malt.datasets.version.dataset_version import locate
    from malt.datasets.version.folders import number_of, remove_tag, set_tag

    if move and remove:
        raise click.UsageError("--move and --remove exclude each other.")
    path = locate(version)
    folder, number = path.parent, None if remove else number_of(path)
    before = remove_tag(folder, tag) if number is None else set_tag(folder, tag, number, move=move)
    if as_json:
        terminal.emit({"dataset": folder.name, "tag": tag, "version": number, "before": before})
    else:
        terminal.say(_describe_tag(f"{folder.name}@{tag}", number, before))


def _describe_tag(tagged: str, number: int | None, before: int | None) -> str:
    if number is None:
        return f"{tagged} is gone; it named v{before}"
    moved = "" if before in (None, number) else f", before v{before}"
    return f"{tagged} names v{number}{moved}"


@click.command()
@takes_version
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write into this new folder.")
@click.option("--questions", metavar="SOURCE", help="New place of the question file.")
@click.option("--prompts", metavar="SET", help="New place of the prompt set.")
@trusts_code
@takes_json
def rebuild(
    version: str, out: Path | None, questions: str | None, prompts: str | None, trust_code: bool, as_json: bool
) -> int:
    """Rebuild a version from the store, with the same content. Into DIR, else in place if the version is damaged."""
    from malt.config.settings import Settings
    from malt.datasets.version.dataset_version import open_version
    from malt.engine import rebuild as rebuilding

    sources = rebuilding.Sources(questions, prompts)
    rebuilt = rebuilding.rebuild(open_version(version), Settings(), out, sources, trust_code=trust_code)
    terminal.emit(_rebuilt_json(rebuilt)) if as_json else _show_rebuilt(rebuilt)
    return 0 if rebuilt.path else 1


def _rebuilt_json(rebuilt: "Rebuilt") -> dict[str, Any]:
    return {
        "version": rebuilt.version.reference,
        "content_sha256": rebuilt.version.manifest.content_sha256,
        "identical": rebuilt.path is not None,
        "written": rebuilt.written,
        "path": None if rebuilt.path is None else str(rebuilt.path),
        "differences": [*rebuilt.differences],
    }


def _show_rebuilt(rebuilt: "Rebuilt") -> None:
    name, content = rebuilt.version.reference, rebuilt.version.manifest.content_sha256
    if rebuilt.path is None:
        terminal.warn(f"error: {name} cannot be rebuilt; nothing was written")
        for difference in rebuilt.differences:
            terminal.warn(f"  {difference}")
    else:
        place = terminal.shorten_path(rebuilt.path)
        done = f"rebuilt in {place}" if rebuilt.written else f"is intact, and the store gives the same content: {place}"
        terminal.say(f"{name} {done}\ncontent {content}")


@click.command()
@takes_version
@takes_json
def rm(version: str, as_json: bool) -> None:
    """Remove a version, unless `latest` or a tag names it. Its samples stay in the store until `malt gc`."""
    from malt.config.settings import Settings
    from malt.datasets.publish.removal import remove_version
    from malt.datasets.version.published import SHELVES

    shelf, _, name = version.partition("/")
    on_shelf = shelf in SHELVES
    removed = remove_version(name, Settings().data_dir / shelf) if on_shelf else remove_version(version)
    if as_json:
        terminal.emit({"removed": removed.version, "path": str(removed.path), "bytes": removed.bytes})
    else:
        terminal.say(f"{removed.version} removed, {terminal.format_bytes(removed.bytes)}{_describe_kept(shelf)}")


def _describe_kept(shelf: str) -> str:
    kept = {"models": "", "evaluations": "answers"}.get(shelf, "samples")
    return f"; its {kept} are in the store until: malt gc --delete" if kept else ""


def _read_age(text: str) -> float:
    """Convert an age such as 30d, 12h or 90m to seconds."""
    if (age := re.fullmatch(r"([0-9]+)([mhd])", text)) is None:
        raise click.BadParameter(f"{text!r} is no age; write 30d, 12h or 90m.")
    return int(age[1]) * _UNITS_S[age[2]]


@click.command()
@click.option("--delete/--dry-run", help="Remove what is found; by default it is only counted.")
@click.option("--older-than", type=_read_age, default="30d", show_default=True, metavar="AGE", help="Minimum age.")
@click.option(
    "--datasets", "also_in", type=click.Path(path_type=Path, file_okay=False, exists=True), multiple=True,
    metavar="DIR", help="Another folder of datasets made from this store; may be repeated.",
)  # fmt: skip
@click.option("--compact", is_flag=True, help="Then return free space to the disk; nothing may write meanwhile.")
@takes_json
def gc(delete: bool, older_than: float, also_in: tuple[Path, ...], compact: bool, as_json: bool) -> None:
    """Find rows and folders that no version needs. Counts them; --delete removes them."""
    from malt.config.settings import Settings
    from malt.datasets.publish.removal import collect_garbage
    from malt.llm.store.samples import Store
    from malt.training.job import clear_leftovers

    settings = Settings()
    found = collect_garbage(settings, older_than, delete=delete, also_in=also_in)
    leftovers = clear_leftovers(settings, older_than, delete=delete)
    found = found._replace(
        folders=found.folders + leftovers.folders, folder_bytes=found.folder_bytes + leftovers.folder_bytes
    )
    if compact and delete:
        with Store(settings.store) as store:
            store.compact()
    if as_json:
        terminal.emit({"deleted": delete, "older_than_s": older_than, **found._asdict()})
    else:
        _show_garbage(found, delete)


def _show_garbage(garbage: "Garbage", deleted: bool) -> None:
    terminal.say(f"{'removed' if deleted else 'not used by any version'}:")
    terminal.say(f"  {garbage.rows:,} rows of the store, {terminal.format_bytes(garbage.row_bytes)}")
    terminal.say(f"  {garbage.folders:,} unfinished folders and links, {terminal.format_bytes(garbage.folder_bytes)}")
    versions = count_noun(garbage.versions, "version")
    terminal.say(f"rows that the {versions} use are kept" + ("" if deleted else "; to remove the others: --delete"))


class _ListsFormats(click.Command):
    """A command whose help ends with the export formats, which are imported only then."""

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
    if empty := _list_empty(exported.manifest):
        terminal.warn(f"warning: not written, as they would have no rows: {', '.join(empty)}")


def _list_empty(manifest: "ExportManifest") -> list[str]:
    """Return the files without rows, in splits that have rows."""
    splits = {"train", *(file.split for file in manifest.files)}
    return [file.path for file in manifest.empty if file.split in splits]


@click.command()
@takes_version
@click.argument("dest", metavar="DEST")
@click.option("--public", is_flag=True, help="Make a new repository on the Hub public; by default it is private.")
@takes_json
def push(version: str, dest: str, public: bool, as_json: bool) -> None:
    """Upload a version to a shared place, and verify it there.

    DEST is hf://datasets/OWNER/NAME (models: hf://OWNER/NAME), s3://bucket/prefix, any URL that fsspec knows, or a
    folder. Only missing files are sent, and no file there is overwritten. On the Hub a version becomes one commit and
    a tag, and a model's card on main shows the results of its evaluations; elsewhere it is put in DEST/<name>/v<N>/.
    Credentials come from the environment.
    """
    from malt.datasets.push.push import push as push_version

    opened = open_any(version)
    pushed = push_version(opened, dest, public=public, card=_write_card(opened))
    terminal.show_report(pushed, _show_pushed, as_json=as_json)


def _write_card(version: "AnyVersion") -> str | None:
    """Return a model's card with the results of its evaluations; None without evaluations."""
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
        terminal.say(f"  card      shows evaluation results, on main ({pushed.card[:12]})")
    terminal.say(f"  verified  {pushed.verified} files there by their digests")
