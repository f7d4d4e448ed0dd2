"""Terminal output that escapes control characters, and shared formats: tables, lists of versions, costs, JSON.

Rich is imported only when something is printed, to keep `malt --help` fast. Nothing printed is read as markup.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from malt.datasets.version.dataset_version import Listed
    from malt.datasets.version.published import Published

V = TypeVar("V", bound="Published[Any]")
R = TypeVar("R", bound="BaseModel")

_LINE_LENGTH = 160
_PLAIN_WIDTH = 160
"""Columns if stdout is no terminal."""


@cache
def console(*, stderr: bool = False) -> "Console":
    """Return the console of stdout or stderr. Emoji codes, markup and control characters are printed as text."""
    from rich.console import Console
    from rich.text import Text

    from malt.sanitize import escape_controls

    class InertConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own options, passed on
            """Convert a string to rich's text; strings in tables and trees pass through here too."""
            return super().render_str(escape_controls(text), **options)

    width = None if stderr or sys.stdout.isatty() else _PLAIN_WIDTH
    return InertConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(*things: "RenderableType", style: str | None = None) -> None:
    console().print(*things, style=style)


def warn(*things: "RenderableType") -> None:
    console(stderr=True).print(*things)


def styled(*parts: str | tuple[str, str]) -> "Text":
    """Join texts, those in a pair with a style."""
    from rich.text import Text

    from malt.sanitize import escape_controls

    return Text.assemble(
        *(escape_controls(part) if isinstance(part, str) else (escape_controls(part[0]), part[1]) for part in parts)
    )


def emit(value: object) -> None:
    """Print one JSON object; escape non-ASCII characters unless stdout is UTF-8."""
    from malt.sanitize import dump_json

    print(dump_json(value, ascii_only=sys.stdout.encoding.lower() != "utf-8"))


def show_report(report: R, show: Callable[[R], None], *, as_json: bool) -> None:
    """Print a report: as one JSON object, or as `show` does."""
    emit(report.model_dump(mode="json")) if as_json else show(report)


def new_table(*columns: str) -> "Table":
    """Return a plain table whose columns after the first are numbers, unless they end in a dot."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name.rstrip("."), justify="left" if place == 0 or name.endswith(".") else "right")
    return table


def format_dollars(cost: float | None) -> str:
    """Write a cost as reports do; an unknown cost is not shown as zero."""
    from malt.datasets.stats import figures

    return figures.format_dollars(cost)


def format_bytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def shorten_path(path: str | Path) -> str:
    """Write a path relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)


def shorten_name(name: str) -> str:
    """Cut the middle out of a model's name longer than a quarter of a line; both ends identify a model."""
    longest = max(20, console().width // 4)
    kept = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:kept]}…{name[-(longest - 1 - kept) :]}"


def one_line(text: str, longest: int = _LINE_LENGTH, more: str = "…") -> str:
    """Fold a text to one line, and cut a long one."""
    folded = " ".join(text.split())
    return folded if len(folded) <= longest else folded[: longest - 1] + more


def show_rows(rows: dict[str, int]) -> None:
    """Print the row counts of a version's files, one file per line; empty validation files are left out."""
    for file, count in rows.items():
        if count or ".validation." not in file:
            say(f"  {file:<28} {count:>8,} rows")


def show_rest(count: int, what: str = "") -> None:
    if count > 0:
        say(f"  … and {count:,} more{what and f' {what}'}; --json has all")


def emit_listing(listed: "Listed[V]", describe: Callable[[V], dict[str, object]]) -> int:
    """Print versions as JSON, with what `describe` adds, and return the exit code."""
    versions = [_identify(version) | describe(version) for version in listed.versions]
    emit({"versions": versions, "unreadable": {name: str(why) for name, why in listed.unreadable.items()}})
    return 1 if listed.unreadable else 0


def _identify(version: "Published[Any]") -> dict[str, object]:
    return {
        "name": version.name,
        "version": version.number,
        "path": str(version.path),
        "created_at": version.manifest.created_at.isoformat(),
        "content_sha256": version.manifest.content_sha256,
    }


def show_listing(
    listed: "Listed[V]", columns: Sequence[str], describe: Callable[[V], Iterable[str]], none_yet: str
) -> int:
    """Print versions as a table with these extra columns, and unreadable versions on stderr.

    Returns the exit code.
    """
    for reference, error in listed.unreadable.items():
        warn(f"error: {reference}: {error}")
    if listed.versions:
        table = new_table("version", *columns, "content.", "made.")
        for version in listed.versions:
            manifest = version.manifest
            made = f"{manifest.created_at:%Y-%m-%d %H:%M}"
            table.add_row(version.reference, *describe(version), manifest.content_sha256[:12], made)
        say(table)
    elif not listed.unreadable:
        say(none_yet)
    return 1 if listed.unreadable else 0


def show_head(version: "Published[Any]") -> None:
    """Print a version's reference, path, digest and date."""
    say(styled((version.reference, "bold"), f"  {shorten_path(version.path)}"))
    say(f"content {version.manifest.content_sha256}, made {version.manifest.created_at:%Y-%m-%d %H:%M} UTC")
