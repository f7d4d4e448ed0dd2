"""What `malt explain`, `malt diff`, `malt export` and `malt push` print for people."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.markup import escape

from malt.console import err, from_here, one_line, out, show_rows, table_of
from malt.spec import PLAYERS
from malt.trees.grading import brief

if TYPE_CHECKING:
    from malt.datasets.compare import Change, FileChange, InputChanges, RowChange, VersionDiff
    from malt.datasets.decisions import Decision
    from malt.datasets.explain import Explanation, LeafTold, TextTold
    from malt.datasets.export import Exported
    from malt.datasets.parcel import Pushed

SHOWN = 10
"""Leaves or decisions told of; the rest are counted."""
QUESTIONS_SHOWN = 3
"""Questions whose rows are told of, for each file that differs."""
ROWS_SHOWN = 3
TEXT_SHOWN = 600
"""Characters of a text that is explained."""
VALUE_SHOWN = 60
"""Characters of a value that changed."""
LEAD_IN = 15
"""Characters shown before the place at which two texts part."""
DIGEST = re.compile(r"[0-9a-f]{64}")
SIGNS = {"added": "+", "removed": "-", "changed": "~"}
UNSAID = frozenset({"request_key", "reward", "value_low", "value_high"})
"""Columns that follow from others: in a row that changed they are not told of."""
COLOURS = {True: "green", False: "red", None: "yellow"}


def show_pushed(pushed: "Pushed") -> None:
    """Print what a push came to."""
    readers = {None: "", True: " (private)", False: " (public)"}[pushed.private]
    if pushed.sent:
        out.print(f"{pushed.version} is at {escape(pushed.url)}{readers}")
        out.print(f"  sent      {pushed.sent} files, {pushed.bytes:,} bytes; {pushed.skipped} were there already")
    else:
        out.print(f"{pushed.version} was at {escape(pushed.url)}{readers} already; nothing was sent")
    out.print(f"  verified  {pushed.verified} files by their digests there")


def show_explanation(told: "Explanation") -> None:
    """Print the story of a row."""
    out.print(f"[bold]{escape(told.row_id)}[/bold]  {told.version}, {told.file}")
    if told.decision is not None:
        out.print(f"  {fate(told.decision)}")
    out.print(f"question   {escape(excerpt(told.question))}")
    out.print(f"reference  {escape(excerpt(told.ground_truth))}")
    show_prompt(told)
    names = ("chosen", "rejected") if told.margin is not None else ("first", "second")
    show_text(names[0] if told.sibling else "text", told.text)
    if told.sibling is not None:
        show_text(names[1], told.sibling)
    if told.margin is not None and told.confidence is not None:
        out.print(f"margin {told.margin:.4g}; the order is right with probability {told.confidence:.4g}")
    show_related(told.related)


def show_prompt(told: "Explanation") -> None:
    """Print what the role saw, a line a message."""
    if told.prompt is None:
        out.print(f"what the {told.role} saw is not known: {escape(told.prompt_from)}")
        return
    out.print(f"what the {told.role} saw, from {escape(told.prompt_from)} (whole with --json):")
    for message in told.prompt:
        out.print(f"  {escape(message.role):<9} {escape(one_line(message.content))}", style="dim")


def show_text(name: str, text: "TextTold") -> None:
    """Print a text, and how its value follows from its leaves."""
    colour = COLOURS[text.label]
    out.print(f"{name}: [{colour}]{text.role} {text.node_id}[/{colour}] by {escape(text.model)}, {text.status}")
    out.print(f"  {escape(excerpt(text.text))}", style="dim")
    out.print(f"  [{colour}]{text.arithmetic}[/{colour}]{sureness(text)}")
    table = table_of("  leaf", "reward", "outcome.", "read.", "grader.", "says.")
    for leaf in text.leaves[:SHOWN]:
        table.add_row(*map(escape, leaf_cells(leaf)))
    out.print(table)
    show_rest(len(text.leaves) - SHOWN, "leaves")


def sureness(text: "TextTold") -> str:
    """Write how sure an inner node's value is."""
    if text.value_low is None or text.value_high is None or text.role == PLAYERS[-1]:
        return ""
    return f"; 95 % interval {text.value_low:.2f} to {text.value_high:.2f}"


def leaf_cells(leaf: "LeafTold") -> tuple[str, ...]:
    """Write a leaf's grade."""
    reward = "not counted" if leaf.reward is None else f"{leaf.reward:.4g}"
    read = "nothing" if leaf.read is None else brief(leaf.read)
    says = one_line(leaf.error or "; ".join(leaf.explanation))
    return f"  {leaf.node_id}", reward, leaf.outcome, read, leaf.grader, says


def show_related(decisions: "Sequence[Decision]") -> None:
    """Print what else became of the texts."""
    out.print("what else became of it:")
    for decision in decisions[:SHOWN]:
        out.print(f"  {escape(decision.row_id)}  {fate(decision)}")
    show_rest(len(decisions) - SHOWN, "rows")


def fate(decision: "Decision") -> str:
    """Write what became of a candidate."""
    passed = f" (past {len(decision.passed)} gates)" if decision.passed else ""
    return f"[{COLOURS[decision.kept]}]{escape(decision.why)}[/{COLOURS[decision.kept]}]{passed}"


def excerpt(text: str) -> str:
    """Fold a text to one line."""
    folded = " ".join(text.split())
    return folded if len(folded) <= TEXT_SHOWN else f"{folded[:TEXT_SHOWN]}… (whole with --json)"


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


def show_rest(count: int, what: str, indent: int = 2) -> None:
    """Print how many were not told of."""
    if count > 0:
        out.print(f"{' ' * indent}… and {count:,} more {what}; --json has all")


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


def show_export(exported: "Exported") -> None:
    """Print what was written, and what the format left out."""
    receipt = exported.receipt
    out.print(f"{receipt.reference} as {receipt.format}: {escape(from_here(str(exported.path)))}")
    show_rows({file.path: file.rows for file in receipt.files})
    for file in receipt.files:
        if file.left_out:
            counted = ", ".join(f"{count:,} {why}" for why, count in sorted(file.left_out.items()))
            out.print(f"  left out of {file.path}: {counted}")


def show_export_warnings(exported: "Exported") -> None:
    """Print on stderr what the tool will not like, and which files are not there for want of rows."""
    for warning in exported.warnings:
        err.print(f"warning: {warning}")
    splits = {"train", *(file.split for file in exported.receipt.files)}
    empty = [file.path for file in exported.receipt.empty if file.split in splits]
    if empty:
        err.print(f"warning: not written, as they would have no rows: {', '.join(empty)}")
