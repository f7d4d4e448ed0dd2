"""Commands that name, renew and remove: `tag`, `rebuild`, `rm`, `gc`."""

import re
from pathlib import Path

import click

from malt.cli.options import takes_json, takes_version

UNITS = {"m": 60, "h": 3_600, "d": 86_400}


@click.command()
@takes_version
@click.argument("tag", metavar="TAG")
@click.option("--move", is_flag=True, help="Take the tag from the version that has it.")
@click.option("--remove", is_flag=True, help="Remove the tag from VERSION's dataset.")
@takes_json
def tag(version: str, tag: str, move: bool, remove: bool, as_json: bool) -> None:
    """Give a version a name that stays with it. NAME@TAG opens it; a tagged version is never removed."""
    from malt.cli.console import lifecycle, terminal
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
        lifecycle.show_tag(folder.name, tag, number, before)


@click.command()
@takes_version
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write into this folder, which is not there yet."
)
@click.option("--questions", metavar="SOURCE", help="Where the question file is now.")
@click.option("--prompts", metavar="SET", help="Where the prompt set is now.")
@takes_json
def rebuild(version: str, out: Path | None, questions: str | None, prompts: str | None, as_json: bool) -> int:
    """Make a version again from the store, of the same content. Into DIR, else in its place where it is damaged."""
    from malt.cli.console import lifecycle, terminal
    from malt.config.settings import Settings
    from malt.datasets.version.dataset_version import open_version
    from malt.engine import rebuild as rebuilding

    sources = rebuilding.Sources(questions, prompts)
    rebuilt = rebuilding.rebuild(open_version(version), Settings(), out, sources)
    terminal.emit(lifecycle.rebuilt_json(rebuilt)) if as_json else lifecycle.show_rebuilt(rebuilt)
    return 0 if rebuilt.path else 1


@click.command()
@takes_version
@takes_json
def rm(version: str, as_json: bool) -> None:
    """Remove a version, unless `latest` or a tag names it. Its samples stay in the store until `malt gc`."""
    from malt.cli.console import lifecycle, terminal
    from malt.datasets.publish.removal import remove_version

    removed = remove_version(version)
    if as_json:
        terminal.emit({"removed": removed.version, "path": str(removed.path), "bytes": removed.bytes})
    else:
        lifecycle.show_removed(removed)


def seconds(age: str) -> float:
    """Read an age like 30d, 12h or 90m."""
    read = re.fullmatch(r"([0-9]+)([mhd])", age)
    if read is None:
        raise click.BadParameter(f"{age!r} is no age; write 30d, 12h or 90m.")
    return int(read[1]) * UNITS[read[2]]


@click.command()
@click.option("--delete/--dry-run", help="Remove it; without --delete it is only counted.")
@click.option("--older-than", type=seconds, default="30d", show_default=True, metavar="AGE", help="Leave younger rows.")
@click.option(
    "--datasets", "also_in", type=click.Path(path_type=Path, file_okay=False, exists=True), multiple=True,
    metavar="DIR", help="Another folder of datasets made from this store; may be repeated.",
)  # fmt: skip
@click.option("--compact", is_flag=True, help="Then give the space back to the disk; nobody may write meanwhile.")
@takes_json
def gc(delete: bool, older_than: float, also_in: tuple[Path, ...], compact: bool, as_json: bool) -> None:
    """Find rows of the store and folders that no version needs. They are counted; --delete removes them."""
    from malt.cli.console import lifecycle, terminal
    from malt.config.settings import Settings
    from malt.datasets.publish.removal import collect
    from malt.llm.store.samples import Store

    settings = Settings()
    found = collect(settings, older_than, delete=delete, also_in=also_in)
    if compact and delete:
        with Store(settings.store) as store:
            store.compact()
    if as_json:
        terminal.emit({"deleted": delete, "older_than_s": older_than, **found._asdict()})
    else:
        lifecycle.show_garbage(found, delete)
