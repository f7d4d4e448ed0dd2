"""A terminal that no text can steer, and what is written alike everywhere: tables, costs, paths, one JSON object."""

import sys
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from malt.sanitize import dump_json, escape_controls


class SafeConsole(Console):
    """A console that no model's or provider's text can steer."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own options, passed on
        """Turn what is printed into rich's text; all strings come by here, in tables and trees too."""
        return super().render_str(escape_controls(text), **options)


out = SafeConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
TEXT_SHOWN = 160
"""Characters of a text on one line."""


def emit(value: JsonValue) -> None:
    """Print one JSON object, in any encoding."""
    print(dump_json(value, ascii_only=sys.stdout.encoding.lower() != "utf-8"))


def dollars(cost: float | None) -> str:
    """Write a cost; one that is not known is not zero."""
    return "unknown" if cost is None else f"${cost:.4f}"


def table_of(*columns: str) -> Table:
    """Return a plain table whose columns after the first are numbers, unless they end in a dot."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name.rstrip("."), justify="left" if place == 0 or name.endswith(".") else "right")
    return table


def from_here(path: str) -> str:
    """Write a path as seen from the current folder, where it lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def one_line(text: str) -> str:
    """Fold a text to the start of one line."""
    folded = " ".join(text.split())
    return folded if len(folded) <= TEXT_SHOWN else folded[: TEXT_SHOWN - 1] + "…"


def show_rows(rows: dict[str, int]) -> None:
    """Print the rows of a version's files, a file a line; of the validation split only what there is."""
    for file, count in rows.items():
        if count or ".validation." not in file:
            out.print(f"  {file:<28} {count:>8,} rows")


def show_rest(count: int, what: str, indent: int = 2) -> None:
    """Print how many were not told of."""
    if count > 0:
        out.print(f"{' ' * indent}… and {count:,} more {what}; --json has all")
