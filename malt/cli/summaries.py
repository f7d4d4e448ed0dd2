"""What `malt plan`, `malt run` and `malt assemble` print for people."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from malt.cli import terminal

if TYPE_CHECKING:
    from malt.engine.build import RunSummary
    from malt.engine.plan import Plan, RolePlan
    from malt.evaluation.plan import EvaluationPlan
    from malt.trees.pipeline import Shortfall
    from malt.trees.tree import FailedBranch

_FAILURES_SHOWN = 10
_GRADE_WORDS = {"right": "correct", "wrong": "incorrect"}
_KINDS = ("sft", "dpo", "kto")


def show_plan(plan: "Plan") -> None:
    """Print a quote."""
    columns = ("model.", "asked", "requests", "completions", "stored", "tokens in", "tokens out", "cost")
    table = terminal.new_table("role", *columns)
    for role, quoted in plan.roles.items():
        table.add_row(role.value, quoted.model, quoted.mode, *quoted_figures(quoted))
    table.add_row("total", "", "", *quoted_figures(plan), style="bold")
    terminal.say(f"{plan.dataset}: {plan.questions} questions; still to be asked:")
    terminal.say(table)
    for gate, count in plan.excluded.items():
        terminal.say(f"{count:,} questions will give no training rows: {gate} in [dataset]")
    for basis in dict.fromkeys(quoted.basis for quoted in plan.roles.values()):
        roles = ", ".join(role.value for role, quoted in plan.roles.items() if quoted.basis == basis)
        terminal.say(f"{roles}: {basis}", style="dim")


def quoted_figures(quoted: "Plan | RolePlan | EvaluationPlan") -> Iterator[str]:
    """Write what is quoted, with the range that it may come out in."""
    yield from map("{:,}".format, (quoted.requests, quoted.completions, quoted.stored_completions))
    for name in ("prompt_tokens", "completion_tokens"):
        low, high = getattr(quoted.low, name), getattr(quoted.high, name)
        yield f"{getattr(quoted, name):,}" + (f" ({low:,}-{high:,})" if low < high else "")
    dollars, (low, high) = terminal.format_dollars, (quoted.low.cost_usd, quoted.high.cost_usd)
    is_range = low is not None and high is not None and low < high
    yield dollars(quoted.cost_usd) + (f" ({dollars(low)}-{dollars(high)})" if is_range else "")


def show_summary(summary: "RunSummary", *, files: bool = False) -> None:
    """Print what came of a run, what it took, and what to look at next; with `files` the rows of each."""
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
    from malt.datasets.stats.figures import describe_unknown

    leaves = ", ".join(f"{count:,} {_GRADE_WORDS.get(name, name)}" for name, count in summary.outcomes.items() if count)
    graders = ", ".join(f"{count:,} by {kind}" for kind, count in summary.graded_by.items())
    yield f"{summary.complete:,} of {summary.questions:,} questions complete; leaves: {leaves or 'none'} ({graders})"
    if summary.unread or summary.disputed:
        yield f"not read: {summary.unread:,} of the incorrect leaves; disputed: {summary.disputed:,} leaves"
    if summary.unknown:
        yield f"unknown: {describe_unknown(summary.unknown)}"
    rows = {kind: sum(n for file, n in summary.rows.items() if file.startswith(f"{kind}/")) for kind in _KINDS}
    if summary.rows:
        yield "rows: " + ", ".join(f"{count:,} {kind}" for kind, count in rows.items())
    yield (
        f"asked: {summary.requests:,} requests for {summary.completions:,} completions, "
        f"{summary.cached_completions:,} from the store; {summary.prompt_tokens + summary.completion_tokens:,} tokens, "
        f"cost {terminal.format_dollars(summary.cost_usd)}, {summary.wall_s:.1f} s"
    )


def show_failures(summary: "RunSummary") -> None:
    """Print what is missing, and why, on stderr."""
    if summary.waits:
        terminal.warn(summary.sentence)
    elif summary.exit_code:
        terminal.warn(f"error: {summary.sentence}")
    show_branches(summary.failures)


def show_shortfall(shortfall: "Shortfall") -> int:
    """Print what a pilot did not get, and return the exit code."""
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
