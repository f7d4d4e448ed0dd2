"""Output of `malt plan`, `malt run` and `malt assemble` for people: quotes, summaries, failures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from malt.cli import terminal
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.engine.build import RunSummary
    from malt.engine.plan import Figures, Plan, Quote
    from malt.trees.pipeline import Shortfall
    from malt.trees.tree import FailedBranch

_FAILURES_SHOWN = 10
_GRADE_WORDS = {"right": "correct", "wrong": "incorrect"}


def show_plan(plan: "Plan") -> None:
    """Print a quote: a table that fits into 80 columns, then the models and the basis of the figures."""
    table = terminal.new_table("role", *QUOTED)
    for role, quoted in plan.roles.items():
        table.add_row(role.value, *quoted_figures(quoted))
    table.add_row("total", *quoted_figures(plan), style="bold")
    again = f", {' and '.join(plan.refresh)} again, with texts that may depend on it" if plan.refresh else ""
    terminal.say(f"{plan.dataset}: {count_noun(plan.questions, 'question')}; still to be asked{again}:")
    terminal.say(table)
    show_range(plan)
    for gate, count in plan.excluded.items():
        terminal.say(f"{count_noun(count, 'question')} will give no training rows: {gate} in [dataset]")
    modes = {"direct": "", "batch": ", in batches"}
    asked = {role: each.model + modes[each.mode] for role, each in plan.roles.items()}
    for notes in (asked, {role: each.basis for role, each in plan.roles.items()}):
        for text in dict.fromkeys(notes.values()):
            roles = ", ".join(role.value for role in notes if notes[role] == text)
            terminal.say(f"{roles}: {text}", style="dim")


QUOTED = ("requests", "completions", "stored", "tokens in", "tokens out", "cost")
"""Columns of `quoted_figures`."""


def quoted_figures(quoted: "Quote") -> Iterator[str]:
    counts = (quoted.requests, quoted.completions, quoted.stored_completions)
    yield from map("{:,}".format, (*counts, quoted.prompt_tokens, quoted.completion_tokens))
    yield terminal.format_dollars(quoted.cost_usd)


def show_range(quoted: "Quote") -> None:
    """Print the likely range of a quote's total and its upper bound, if anything is still to be asked."""
    if not quoted.completions:
        return
    if ranges := _describe_ranges(quoted):
        terminal.say(f"the total is likely {ranges}")
    terminal.say(f"{'and' if ranges else 'the total is'} {_describe_most(quoted.most)}")


def _describe_most(most: "Figures | None") -> str:
    if most is None:
        return "without an upper bound, as a role has no max_tokens"
    cost = "" if most.cost_usd == 0 else f", cost {terminal.format_dollars(most.cost_usd)}"
    tokens = f"{most.prompt_tokens:,} tokens in, {most.completion_tokens:,} out"
    return f"at most {tokens}{cost}, if no request is repeated"


def _describe_ranges(quoted: "Quote") -> str:
    """Write the ranges of tokens and cost, leaving out those of one figure."""
    low, high, dollars = quoted.low, quoted.high, terminal.format_dollars
    found = [
        (low.prompt_tokens, high.prompt_tokens, f"{low.prompt_tokens:,}-{high.prompt_tokens:,} tokens in"),
        (low.completion_tokens, high.completion_tokens, f"{low.completion_tokens:,}-{high.completion_tokens:,} out"),
        (low.cost_usd, high.cost_usd, f"{dollars(low.cost_usd)}-{dollars(high.cost_usd)}"),
    ]
    return ", ".join(text for least, most, text in found if least != most)


def show_summary(summary: "RunSummary", *, files: bool = False) -> None:
    """Print a run's result, its cost, and the next commands; with `files` the rows of each file."""
    state = "new" if summary.created else "unchanged"
    terminal.say(
        f"{summary.dataset}: nothing published"
        if summary.path is None
        else f"{summary.reference} ({state}): {terminal.shorten_path(summary.path)}"
    )
    for line in (*_describe_content(summary), *(f"suspicious: {each}" for each in summary.suspicions)):
        terminal.say(f"  {line}")
    if summary.path is not None:
        terminal.say(f"  next: malt report {summary.reference} --open; malt show {summary.reference}")
    if files:
        terminal.show_rows(summary.rows)


def _describe_content(summary: "RunSummary") -> Iterator[str]:
    from malt.datasets.rows.tables import count_rows
    from malt.datasets.stats.figures import describe_unknown

    yield f"{summary.complete:,} of {summary.questions:,} questions complete; leaves: {_describe_leaves(summary)}"
    if summary.unread or summary.disputed:
        yield f"not read: {summary.unread:,} of the incorrect leaves; disputed: {summary.disputed:,} leaves"
    if summary.unknown:
        yield f"unknown: {describe_unknown(summary.unknown)}"
    if summary.rows:
        yield "rows: " + ", ".join(f"{count:,} {kind}" for kind, count in count_rows(summary.rows).items())
    yield _describe_asked(summary)


def _describe_leaves(summary: "RunSummary") -> str:
    graders = ", ".join(f"{count:,} by {kind}" for kind, count in summary.graded_by.items())
    return describe_outcomes(summary.outcomes) + (f" ({graders})" if graders else "")


def _describe_asked(summary: "RunSummary") -> str:
    tokens, cost = summary.prompt_tokens + summary.completion_tokens, terminal.format_dollars(summary.cost_usd)
    asked = f"{summary.requests:,} requests for {summary.completions:,} completions"
    from_store = f"{summary.cached_completions:,} from the store"
    return f"asked: {asked}, {from_store}; {tokens:,} tokens, cost {cost}, {summary.wall_s:.1f} s"


def describe_outcomes(outcomes: "Mapping[str, int]") -> str:
    return ", ".join(f"{n:,} {_GRADE_WORDS.get(name, name)}" for name, n in outcomes.items() if n) or "none"


def show_failures(summary: "RunSummary") -> None:
    """Print what is missing, and why, on stderr."""
    if summary.waits or summary.exit_code:
        terminal.warn(summary.sentence if summary.waits else f"error: {summary.sentence}")
    show_branches(summary.failures)


def show_shortfall(shortfall: "Shortfall") -> int:
    """Print the failures of a pilot, and return the exit code."""
    if shortfall.stopped:
        terminal.warn(f"error: the pilot stopped: {shortfall.stopped}")
    elif shortfall.failures:
        terminal.warn(f"error: {len(shortfall.failures)} branches of the pilot failed")
    show_branches(shortfall.failures)
    return 3 if shortfall.stopped else int(bool(shortfall.failures))


def show_branches(failures: "Sequence[FailedBranch]") -> None:
    """Print the first failed branches on stderr."""
    for failure in failures[:_FAILURES_SHOWN]:
        where = failure.question_id + (f"/{failure.address}" if failure.address else "")
        terminal.warn(f"  {failure.role} {where}: {failure.reason}")
    if len(failures) > _FAILURES_SHOWN:
        terminal.warn(f"  … and {len(failures) - _FAILURES_SHOWN} more")
