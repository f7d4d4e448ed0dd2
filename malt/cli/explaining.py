"""Commands that explain rows and differences: `explain`, `diff`, `compare`."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from malt.cli import evaluating, terminal, training
from malt.cli.options import takes_json, takes_version

if TYPE_CHECKING:
    from pydantic import JsonValue

    from malt.datasets.check.compare import Change, FileChange, InputChanges, RowChange, VersionDiff
    from malt.datasets.check.explain import Explanation, LeafExplanation, TextExplanation
    from malt.datasets.rows.selection import Decision
    from malt.review.side_by_side import Standing

_SHOWN = 10
"""Leaves, decisions or inputs shown; the rest are counted."""
_TEXT_LENGTH = 600
_COLOURS = {True: "green", False: "red", None: "yellow"}

_QUESTIONS_READ = 3
"""Number of questions per file from which `diff` takes the first rows that differ."""
_ROWS_SHOWN = 3
_VALUE_LENGTH = 60
_LEAD_IN = 15
"""Characters shown before the first difference of two texts."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}
_DERIVED = frozenset({"request_key", "reward", "value_low", "value_high"})
"""Columns that are derived from others, which `diff` leaves out."""


@click.command()
@takes_version
@click.argument("row_id", metavar="ROW_ID", required=False)
@takes_json
def explain(version: str, row_id: str | None, as_json: bool) -> None:
    """Explain where a row or a node comes from. Texts, grades, arithmetic, gates; a node is QUESTION_ID/2.0.1.

    For a model version: the rows and questions it was trained on; with ROW_ID one of them.
    """
    from malt.datasets.version.published import find_kind

    if find_kind(version) == "models":
        version = training.explain(version, row_id, as_json=as_json)
    if row_id is not None:
        _explain_row(version, row_id, as_json=as_json)
    elif find_kind(version) == "datasets":
        raise click.UsageError("Missing argument 'ROW_ID'.")


def _explain_row(version: str, row_id: str, *, as_json: bool) -> None:
    from malt.datasets.check.explain import explain as explain_row
    from malt.datasets.version.dataset_version import open_version
    from malt.datasets.version.reading import reading

    opened = open_version(version)
    with reading(opened.path, f"{row_id} of {opened.reference}"):
        explained = explain_row(opened, row_id)
    terminal.show_report(explained, _show_explanation, as_json=as_json)


def _show_explanation(row: "Explanation") -> None:
    terminal.say(terminal.styled((row.row_id, "bold"), f"  {row.version}, {row.file}"))
    if row.decision is not None:
        terminal.say(terminal.styled("  ", *_decision_parts(row.decision)))
    terminal.say(f"question   {_excerpt(row.question)}")
    terminal.say(f"reference  {_excerpt(row.ground_truth)}")
    _show_prompt(row)
    names = ("chosen", "rejected") if row.margin is not None else ("first", "second")
    _show_text(names[0] if row.sibling else "text", row.text)
    if row.sibling is not None:
        _show_text(names[1], row.sibling)
    if row.margin is not None and row.confidence is not None:
        terminal.say(f"margin {row.margin:.4g}; the order is right with probability {row.confidence:.4g}")
    _show_related(row.related)


def _show_prompt(row: "Explanation") -> None:
    """Print the prompt that the role saw, one line per message."""
    if row.prompt is None:
        terminal.say(f"the prompt of the {row.role} is not known: {row.prompt_from}")
        return
    terminal.say(f"prompt of the {row.role}, from {row.prompt_from} (whole with --json):")
    for message in row.prompt:
        terminal.say(f"  {message.role:<9} {terminal.one_line(message.content)}", style="dim")


def _show_text(name: str, text: "TextExplanation") -> None:
    """Print a text, and the arithmetic from its leaves to its value."""
    colour = _COLOURS[text.label]
    node = (f"{text.role} {text.node_id}", colour)
    terminal.say(terminal.styled(f"{name}: ", node, f" by {text.model}, {text.status}"))
    terminal.say(f"  {_excerpt(text.text)}", style="dim")
    terminal.say(terminal.styled("  ", (text.arithmetic, colour), _format_interval(text)))
    table = terminal.new_table("  leaf", "reward", "outcome.", "read.", "grader.", "says.")
    for leaf in text.leaves[:_SHOWN]:
        table.add_row(*_leaf_cells(leaf))
    terminal.say(table)
    terminal.show_rest(len(text.leaves) - _SHOWN, "leaves")


def _format_interval(text: "TextExplanation") -> str:
    """Return the 95 % interval of an inner node's value as text; empty for a leaf."""
    from malt.config.roles import PLAYERS

    if text.value_low is None or text.value_high is None or text.role == PLAYERS[-1]:
        return ""
    return f"; 95 % interval {text.value_low:.2f} to {text.value_high:.2f}"


def _leaf_cells(leaf: "LeafExplanation") -> tuple[str, ...]:
    from malt.grading.grades import brief

    reward = "not counted" if leaf.reward is None else f"{leaf.reward:.4g}"
    read = "nothing" if leaf.read is None else brief(leaf.read)
    says = terminal.one_line(leaf.error or "; ".join(leaf.explanation))
    return f"  {leaf.node_id}", reward, leaf.outcome, read, leaf.grader, says


def _show_related(decisions: "Sequence[Decision]") -> None:
    terminal.say("other rows of these texts:")
    for decision in decisions[:_SHOWN]:
        terminal.say(terminal.styled(f"  {decision.row_id}  ", *_decision_parts(decision)))
    terminal.show_rest(len(decisions) - _SHOWN, "rows")


def _decision_parts(decision: "Decision") -> tuple[str | tuple[str, str], ...]:
    passed = f" (past {len(decision.passed)} gates)" if decision.passed else ""
    return (decision.why, _COLOURS[decision.kept]), passed


def _excerpt(text: str) -> str:
    return terminal.one_line(text, _TEXT_LENGTH, "… (whole with --json)")


@click.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@click.option("--full", is_flag=True, help="For datasets: print every row that differs, by file and question.")
@takes_json
def diff(old: str, new: str, full: bool, as_json: bool) -> None:
    """Show what changed from version A to version B. Inputs, and rows added, removed, relabelled."""
    from malt.datasets.version.published import find_kind

    compared: Mapping[str, Callable[..., None]] = {
        "evaluations": evaluating.diff,
        "models": training.diff,
        "datasets": partial(_diff_datasets, full=full),
    }
    compared[find_kind(old)](old, new, as_json=as_json)


def _diff_datasets(old: str, new: str, *, full: bool, as_json: bool) -> None:
    from malt.datasets.check.compare import compare
    from malt.datasets.version.dataset_version import open_version

    found = compare(open_version(old), open_version(new), None if as_json or full else _QUESTIONS_READ)
    terminal.show_report(found, partial(_show_diff, full=full), as_json=as_json)


def _show_diff(diff: "VersionDiff", *, full: bool) -> None:
    terminal.say(f"{diff.old.version} -> {diff.new.version}", style="bold")
    _show_inputs(diff.inputs, None if full else _SHOWN)
    if diff.same_content:
        terminal.say(f"same content: every row is the same ({diff.new.content_sha256[:12]})")
        return
    _show_counts(diff.files)
    if not full:
        _show_first([row for change in diff.files.values() for each in change.questions for row in each.rows])
        return
    for file, change in diff.files.items():
        if change.questions:
            _show_file(file, change)


def _show_inputs(inputs: "InputChanges", most: int | None) -> None:
    groups = {"config": inputs.config, "prompts": inputs.prompts, "questions": inputs.questions, "code": inputs.code}
    differing = [(group, name, change) for group, changes in groups.items() for name, change in changes.items()]
    terminal.say("inputs that differ:" if differing else "no input differs")
    for group, name, change in differing[:most]:
        terminal.say(f"  {group:<10} {name}  {_format_change(change)}")
    terminal.show_rest(len(differing) - (most or len(differing)), "inputs")


def _show_counts(files: "Mapping[str, FileChange]") -> None:
    counted = ("added", "removed", "changed", "relabelled", "rewritten")
    table = terminal.new_table("rows of", "old", "new", *counted, "questions", ".")
    for file, change in files.items():
        if not change.same:
            figures = (*change.rows, *(getattr(change, name) for name in counted), change.questions_changed)
            moved = "" if change.questions_changed else "the same rows: their order or the columns differ"
            table.add_row(file, *map("{:,}".format, figures), moved)
    terminal.say(table)
    terminal.say("relabelled: another label or value; rewritten: another text or prompt; a changed row may be both")


def _show_first(rows: "Sequence[RowChange]") -> None:
    for way in _SIGNS:
        for row in [row for row in rows if row.change == way][:_ROWS_SHOWN]:
            _show_row(row, indent=2)
    terminal.say("the first of each; --full has all")


def _show_row(row: "RowChange", indent: int) -> None:
    terminal.say(f"{' ' * indent}{_SIGNS[row.change]} {row.row_id}  {_format_columns(row)}".rstrip())


def _show_file(file: str, change: "FileChange") -> None:
    """Print the rows of a file that differ, by question."""
    terminal.say(file, style="bold")
    for question in change.questions:
        counts = ((name, getattr(question, name)) for name in _SIGNS)
        counted = ", ".join(f"{count:,} {name}" for name, count in counts if count)
        terminal.say(f"  {question.question_id}: {counted}")
        for row in question.rows:
            _show_row(row, indent=4)


def _format_columns(row: "RowChange") -> str:
    return ", ".join(f"{name} {_format_change(change)}" for name, change in row.columns.items() if name not in _DERIVED)


def _format_change(change: "Change") -> str:
    """Write two values; long ones start shortly before their first difference."""
    old, new = _plain(change.old), _plain(change.new)
    start = max(0, _count_alike(old, new) - _LEAD_IN)
    return f"{_cut(old, start)} -> {_cut(new, start)}"


def _count_alike(old: str, new: str) -> int:
    """Return the length of the common prefix."""
    differ = (place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    return next(differ, min(len(old), len(new)))


def _cut(text: str, start: int) -> str:
    end = start + _VALUE_LENGTH
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"


def _plain(value: "JsonValue") -> str:
    """Write a value of any type on one line."""
    match value:
        case None:
            return "none"
        case float():
            return f"{value:.6g}"
        case str() if _DIGEST.fullmatch(value):
            return value[:12]
        case str():
            return " ".join(value.split()) or "empty"
        case [{"content": _}, *_]:
            return " ".join(" ".join(str(turn["content"]) for turn in value if isinstance(turn, dict)).split())
    return " ".join(json.dumps(value, ensure_ascii=False).split())


@click.command()
@click.argument("references", metavar="A B...", nargs=-1, required=True)
@takes_json
def compare(references: tuple[str, ...], as_json: bool) -> None:
    """Show dataset versions side by side. Accuracy, lift, yield, tokens and cost."""
    from malt.datasets.version.dataset_version import open_version
    from malt.review.side_by_side import standing_of

    standings = [standing_of(open_version(reference)) for reference in references]
    if as_json:
        terminal.emit({"versions": [standing.model_dump(mode="json") for standing in standings]})
    else:
        _show_standings(standings)


def _show_standings(standings: "Sequence[Standing]") -> None:
    from malt.datasets.stats import figures

    shares = ("generator", "refiner", "leaves' vote", "lift", "mixed")
    table = terminal.new_table("version", "questions", *shares, "sft", "dpo", "kto", "tokens", "cost", "a sft row")
    for each in standings:
        percents = (each.generator_percent, each.refiner_percent, each.leaves_vote_percent)
        lift = "n/a" if each.lift_points is None else f"{each.lift_points:+.1f}"
        table.add_row(
            each.version,
            f"{each.questions:,}",
            *map(figures.format_share, percents),
            lift,
            figures.format_share(each.mixed_percent),
            *(f"{count:,}" for count in each.rows.values()),
            figures.format_count(each.tokens),
            figures.format_dollars(each.cost_usd),
            figures.format_dollars(each.cost_per_sft_row),
        )
    terminal.say(table)
