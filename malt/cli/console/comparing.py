"""What `malt diff` prints for people."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.markup import escape

from malt.cli.console.terminal import out, show_rest, table_of

if TYPE_CHECKING:
    from malt.datasets.check.compare import Change, FileChange, InputChanges, RowChange, VersionDiff

QUESTIONS_SHOWN = 3
"""Questions whose rows are told of, for each file that differs."""
ROWS_SHOWN = 3
VALUE_SHOWN = 60
"""Characters of a value that changed."""
LEAD_IN = 15
"""Characters shown before the place at which two texts part."""
DIGEST = re.compile(r"[0-9a-f]{64}")
SIGNS = {"added": "+", "removed": "-", "changed": "~"}
UNSAID = frozenset({"request_key", "reward", "value_low", "value_high"})
"""Columns that follow from others: in a row that changed they are not told of."""


def show_diff(diff: "VersionDiff") -> None:
    """Print what changed from one version to another."""
    out.print(f"[bold]{diff.old.version} -> {diff.new.version}[/bold]")
    show_inputs(diff.inputs)
    if diff.same_content:
        out.print(f"same content: every row is the same ({diff.new.content_sha256[:12]})")
        return
    show_counts(diff.files)
    for file, change in diff.files.items():
        if change.questions:
            show_file(file, change)


def show_inputs(inputs: "InputChanges") -> None:
    """Print the inputs that differ, one a line."""
    groups = {"config": inputs.config, "prompts": inputs.prompts, "questions": inputs.questions, "code": inputs.code}
    differing = [(group, name, change) for group, changes in groups.items() for name, change in changes.items()]
    out.print("inputs that differ:" if differing else "no input differs")
    for group, name, change in differing:
        out.print(f"  {group:<10} {escape(name)}  {escape(old_and_new(change))}")


def show_counts(files: "Mapping[str, FileChange]") -> None:
    """Print how many rows differ, a file a line."""
    counted = ("added", "removed", "changed", "relabelled", "rewritten", "questions_changed")
    table = table_of("rows of", "old", "new", *counted[:-1], "questions", ".")
    for file, change in files.items():
        if not change.same:
            figures = (*change.rows, *(getattr(change, name) for name in counted))
            moved = "" if change.questions_changed else "the same rows: their order or the columns differ"
            table.add_row(file, *map("{:,}".format, figures), moved)
    out.print(table)
    out.print("relabelled: of another label or value; rewritten: of another text or prompt; a changed row may be both")


def show_file(file: str, change: "FileChange") -> None:
    """Print the first rows of a file that differ, by question."""
    out.print(f"[bold]{file}[/bold]")
    for question in change.questions:
        counts = ((name, getattr(question, name)) for name in SIGNS)
        counted = ", ".join(f"{count:,} {name}" for name, count in counts if count)
        out.print(f"  {escape(question.question_id)}: {counted}")
        for row in question.rows[:ROWS_SHOWN]:
            out.print(f"    {SIGNS[row.change]} {escape(row.row_id)}  {escape(differences(row))}".rstrip())
        show_rest(len(question.rows) - ROWS_SHOWN, "rows", indent=4)
    show_rest(change.questions_changed - len(change.questions), "questions")


def differences(row: "RowChange") -> str:
    """Write what differs in a row."""
    return ", ".join(f"{name} {old_and_new(change)}" for name, change in row.columns.items() if name not in UNSAID)


def old_and_new(change: "Change") -> str:
    """Write two values, of long ones the part where they part."""
    old, new = plain(change.old), plain(change.new)
    differ = (place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    start = max(0, next(differ, min(len(old), len(new))) - LEAD_IN)
    return f"{part(old, start)} -> {part(new, start)}"


def part(text: str, start: int) -> str:
    """Cut a few characters out of a text."""
    end = start + VALUE_SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"


def plain(value: JsonValue) -> str:
    """Write a value of any type on one line."""
    match value:
        case None:
            return "none"
        case float():
            return f"{value:.6g}"
        case str() if DIGEST.fullmatch(value):
            return value[:12]
        case str():
            return " ".join(value.split()) or "empty"
        case [{"content": _}, *_]:
            return " ".join(str(turn["content"]) for turn in value if isinstance(turn, dict))
    return " ".join(json.dumps(value, ensure_ascii=False).split())
