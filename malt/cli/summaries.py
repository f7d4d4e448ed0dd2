"""What `malt plan`, `malt run` and `malt assemble` print for people."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from malt.cli import terminal

if TYPE_CHECKING:
    from malt.engine.plan import Plan, RolePlan
    from malt.engine.summary import RunSummary
    from malt.evaluation.plan import EvaluationPlan
    from malt.trees.pipeline import Shortfall
    from malt.trees.tree import FailedBranch

_FAILURES_SHOWN = 10


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


def show_summary(summary: "RunSummary") -> None:
    """Print the result of a run."""
    from malt.datasets.stats.findings import describe_unknown

    if summary.path is None:
        terminal.say(f"{summary.dataset}: nothing published")
    else:
        state = "new" if summary.created else "unchanged"
        terminal.say(f"{summary.reference} ({state}): {terminal.shorten_path(summary.path)}")
    leaves = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes.items() if count)
    graded_by = ", ".join(f"{count} {kind}" for kind, count in summary.graded_by.items())
    terminal.say(f"  questions  {summary.complete} of {summary.questions} complete")
    terminal.say(f"  leaves     {leaves or 'none'}")
    terminal.say(f"  graded by  {graded_by or 'nobody'}")
    if summary.unread or summary.disputed:
        terminal.say(f"  not read   {summary.unread:,} of the wrong leaves; {summary.disputed:,} leaves are disputed")
    if summary.unknown:
        terminal.say(f"  unknown    {describe_unknown(summary.unknown)}")
    for suspicion in summary.suspicions:
        terminal.say(f"  suspicious {suspicion}")
    terminal.say(
        f"  asked      {summary.requests:,} requests, {summary.completions:,} completions; "
        f"{summary.cached_completions:,} from the store"
    )
    terminal.say(
        f"  used       {summary.prompt_tokens:,} prompt and {summary.completion_tokens:,} completion tokens, "
        f"cost {terminal.format_dollars(summary.cost_usd)}, {summary.wall_s:.1f} s"
    )
    terminal.show_rows(summary.rows)


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
