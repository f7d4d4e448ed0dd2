"""What `malt explain` prints for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from malt.cli.console.terminal import one_line, out, show_rest, table_of
from malt.config.spec import PLAYERS
from malt.grading.graders import brief

if TYPE_CHECKING:
    from malt.datasets.check.explain import Explanation, LeafTold, TextTold
    from malt.datasets.rows.gate_trace import Decision

SHOWN = 10
"""Leaves or decisions told of; the rest are counted."""
TEXT_SHOWN = 600
"""Characters of a text that is explained."""
COLOURS = {True: "green", False: "red", None: "yellow"}


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
