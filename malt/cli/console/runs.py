"""What `malt plan`, `malt run` and `malt assemble` print for people."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from malt.cli.console.terminal import dollars, err, from_here, out, show_rows, table_of

if TYPE_CHECKING:
    from malt.engine.plan import Plan, RolePlan
    from malt.engine.summary import RunSummary
    from malt.trees.pipeline import Shortfall
    from malt.trees.tree import FailedBranch

FAILURES_SHOWN = 10


def show_plan(plan: "Plan") -> None:
    """Print a quote."""
    table = table_of("role", "model.", "asked", "requests", "completions", "stored", "tokens in", "tokens out", "cost")
    for role, quoted in plan.roles.items():
        table.add_row(role.value, escape(quoted.model), quoted.mode, *quoted_figures(quoted))
    table.add_row("total", "", "", *quoted_figures(plan), style="bold")
    out.print(f"{plan.dataset}: {plan.questions} questions; still to be asked:")
    out.print(table)
    for gate, count in plan.excluded.items():
        out.print(f"{count:,} questions will give no training rows: {gate} in \\[dataset]")
    for basis in dict.fromkeys(quoted.basis for quoted in plan.roles.values()):
        of = ", ".join(role.value for role, quoted in plan.roles.items() if quoted.basis == basis)
        out.print(f"{of}: {basis}", style="dim")


def quoted_figures(quoted: "Plan | RolePlan") -> Iterator[str]:
    """Write what is quoted, with the range that it may come out in."""
    yield from map("{:,}".format, (quoted.requests, quoted.completions, quoted.stored_completions))
    for name in ("prompt_tokens", "completion_tokens"):
        low, high = getattr(quoted.low, name), getattr(quoted.high, name)
        yield f"{getattr(quoted, name):,}" + (f" ({low:,}-{high:,})" if low < high else "")
    low, high = quoted.low.cost_usd, quoted.high.cost_usd
    is_range = low is not None and high is not None and low < high
    yield dollars(quoted.cost_usd) + (f" ({dollars(low)}-{dollars(high)})" if is_range else "")


def show_summary(summary: "RunSummary") -> None:
    """Print what a run came to."""
    if summary.path is None:
        out.print(f"{summary.dataset}: nothing published")
    else:
        out.print(
            f"{summary.reference} ({'new' if summary.created else 'unchanged'}): {escape(from_here(summary.path))}"
        )
    leaves = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes.items() if count)
    graded_by = ", ".join(f"{count} {kind}" for kind, count in summary.graded_by.items())
    out.print(f"  questions  {summary.complete} of {summary.questions} complete")
    out.print(f"  leaves     {leaves or 'none'}")
    out.print(f"  graded by  {graded_by or 'nobody'}")
    out.print(
        f"  asked      {summary.requests:,} requests, {summary.completions:,} completions; "
        f"{summary.cached_completions:,} from the store"
    )
    out.print(
        f"  used       {summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} completion tokens, "
        f"cost {dollars(summary.cost_usd)}, {summary.wall_s:.1f} s"
    )
    show_rows(summary.rows)


def show_failures(summary: "RunSummary") -> None:
    """Print what is missing, and why, on stderr."""
    if summary.waits:
        err.print(escape(summary.sentence))
    elif summary.exit_code:
        err.print(f"error: {escape(summary.sentence)}")
    show_branches(summary.failures)


def show_shortfall(shortfall: "Shortfall") -> int:
    """Print what a pilot could not have, and return the exit code."""
    if shortfall.stopped:
        err.print(f"error: the pilot stopped: {escape(shortfall.stopped)}")
    elif shortfall.failures:
        err.print(f"error: {len(shortfall.failures)} branches of the pilot failed")
    show_branches(shortfall.failures)
    return 3 if shortfall.stopped else int(bool(shortfall.failures))


def show_branches(failures: "Sequence[FailedBranch]") -> None:
    """Print the first failed branches on stderr."""
    for failure in failures[:FAILURES_SHOWN]:
        where = failure.question_id + (f"/{failure.address}" if failure.address else "")
        err.print(f"  {failure.role} {escape(where)}: {escape(failure.reason)}")
    if len(failures) > FAILURES_SHOWN:
        err.print(f"  … and {len(failures) - FAILURES_SHOWN} more")
