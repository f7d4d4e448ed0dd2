"""What `malt tag`, `malt rebuild`, `malt rm` and `malt gc` print for people."""

from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.markup import escape

from malt.cli.console.terminal import err, from_here, out

if TYPE_CHECKING:
    from malt.datasets.publish.removal import Garbage, Removed
    from malt.engine.rebuild import Rebuilt


def show_tag(dataset: str, tag: str, number: int | None, before: int | None) -> None:
    """Print what a tag names now."""
    if number is None:
        out.print(f"{dataset}@{tag} is gone; it named v{before}")
    else:
        out.print(f"{dataset}@{tag} names v{number}" + (f", before v{before}" if before not in (None, number) else ""))


def rebuilt_json(rebuilt: "Rebuilt") -> JsonValue:
    """Return what came of rebuilding as JSON."""
    return {
        "version": rebuilt.version.reference,
        "content_sha256": rebuilt.version.manifest.content_sha256,
        "identical": rebuilt.path is not None,
        "written": rebuilt.written,
        "path": None if rebuilt.path is None else str(rebuilt.path),
        "differences": [*rebuilt.differences],
    }


def show_rebuilt(rebuilt: "Rebuilt") -> None:
    """Print where a version was made again, or what keeps it from that."""
    name, content = rebuilt.version.reference, rebuilt.version.manifest.content_sha256
    if rebuilt.path is None:
        err.print(f"error: {name} cannot be made again; nothing was written")
        for difference in rebuilt.differences:
            err.print(f"  {escape(difference)}")
    else:
        place = escape(from_here(str(rebuilt.path)))
        done = f"rebuilt in {place}" if rebuilt.written else f"holds, and the store gives the same again: {place}"
        out.print(f"{name} {done}\ncontent {content}")


def show_removed(removed: "Removed") -> None:
    """Print what was removed."""
    out.print(f"{removed.version} removed, {mib(removed.bytes)}; its samples are in the store until: malt gc --delete")


def show_garbage(garbage: "Garbage", deleted: bool) -> None:
    """Print what no version uses."""
    out.print(f"{'removed' if deleted else 'of no use'}:")
    out.print(f"  {garbage.rows:,} rows of the store, {mib(garbage.row_bytes)}")
    out.print(f"  {garbage.folders:,} unfinished folders and links, {mib(garbage.folder_bytes)}")
    versions = f"{garbage.versions:,} version{'' if garbage.versions == 1 else 's'}"
    out.print(f"what the {versions} there use stays" + ("" if deleted else "; to remove the rest: --delete"))


def mib(size: int) -> str:
    """Write a number of bytes."""
    return f"{size / 2**20:,.1f} MiB"
