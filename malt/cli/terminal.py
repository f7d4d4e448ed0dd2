"""A terminal that no text can steer, and what is written alike everywhere: tables, costs, paths, one JSON object.

Rich is imported when something is printed: `malt --help` does without. Nothing printed is read as markup.
"""

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_LINE_LENGTH = 160
_PLAIN_WIDTH = 160
"""Columns where stdout is no terminal."""


@cache
def console(*, stderr: bool = False) -> "Console":
    """Return the console of stdout or stderr. Emoji codes, markup and control characters are printed as text."""
    from rich.console import Console
    from rich.text import Text

    from malt.sanitize import escape_controls

    class InertConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own options, passed on
            """Turn a string into rich's text; strings in tables and trees come by here too."""
            return super().render_str(escape_controls(text), **options)

    width = None if stderr or sys.stdout.isatty() else _PLAIN_WIDTH
    return InertConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(*things: "RenderableType", style: str | None = None) -> None:
    """Print on stdout."""
    console().print(*things, style=style)


def warn(*things: "RenderableType") -> None:
    """Print on stderr."""
    console(stderr=True).print(*things)


def styled(*parts: str | tuple[str, str]) -> "Text":
    """Join texts, those in a pair with a style."""
    from rich.text import Text

    from malt.sanitize import escape_controls

    return Text.assemble(
        *(escape_controls(part) if isinstance(part, str) else (escape_controls(part[0]), part[1]) for part in parts)
    )


def emit(value: object) -> None:
    """Print one JSON object, in any encoding."""
    from malt.sanitize import dump_json

    print(dump_json(value, ascii_only=sys.stdout.encoding.lower() != "utf-8"))


def new_table(*columns: str) -> "Table":
    """Return a plain table whose columns after the first are numbers, unless they end in a dot."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name.rstrip("."), justify="left" if place == 0 or name.endswith(".") else "right")
    return table


def format_dollars(cost: float | None) -> str:
    """Write a cost; an unknown one is not zero."""
    return "unknown" if cost is None else f"${cost:.4f}"


def count(number: int, noun: str) -> str:
    """Write a number with its noun, which takes an `s` but for one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_bytes(size: int) -> str:
    """Write a size in MiB."""
    return f"{size / 2**20:,.1f} MiB"


def shorten_path(path: str | Path) -> str:
    """Write a path as seen from the current folder, where it lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)


def shorten_name(name: str) -> str:
    """Leave out the middle of a model's name that is longer than a quarter of a line; both ends tell models apart."""
    longest = max(20, console().width // 4)
    kept = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:kept]}…{name[-(longest - 1 - kept) :]}"


def one_line(text: str, longest: int = _LINE_LENGTH, more: str = "…") -> str:
    """Fold a text to one line, and cut a long one."""
    folded = " ".join(text.split())
    return folded if len(folded) <= longest else folded[: longest - 1] + more


def show_rows(rows: dict[str, int]) -> None:
    """Print the rows of a version's files, a file a line; empty validation files are left out."""
    for file, count in rows.items():
        if count or ".validation." not in file:
            say(f"  {file:<28} {count:>8,} rows")


def show_rest(count: int, what: str = "", indent: int = 2) -> None:
    """Print how many more there are."""
    if count > 0:
        say(f"{' ' * indent}… and {count:,} more{what and f' {what}'}; --json has all")
