"""What `malt evaluate`, `malt evaluations` and `malt show evaluations/NAME` print."""

from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.markup import escape

from malt.cli.console.terminal import dollars, err, from_here, out, table_of

if TYPE_CHECKING:
    from malt.evaluation.result import Evaluated
    from malt.evaluation.summary import Cell, Summary
    from malt.evaluation.version import EvaluationVersion, ListedEvaluations

FAILURES_SHOWN = 5


def show_evaluated(done: "Evaluated") -> None:
    """Print what came of an evaluation."""
    if done.version is not None:
        show_evaluation(done.version)
    used = f"{done.requests:,} requests, {done.completions:,} completions, {done.cached_completions:,} from the store"
    out.print(f"{used}; this run cost {dollars(done.cost_usd)} and took {done.wall_s:.1f} s")


def show_failures(done: "Evaluated") -> None:
    """Print on stderr what could not be had."""
    if done.stopped is not None:
        err.print(f"stopped: {escape(done.stopped)}")
    for failure in done.failures[:FAILURES_SHOWN]:
        where = f"{failure.question_id}/{failure.address}".rstrip("/")
        err.print(f"failed: {failure.role} of {escape(where)}: {escape(failure.reason)}")
    if len(done.failures) > FAILURES_SHOWN:
        err.print(f"… and {len(done.failures) - FAILURES_SHOWN} more; run again to ask for just what is missing")


def show_evaluation(version: "EvaluationVersion") -> None:
    """Print an evaluation's figures."""
    summary = version.summary
    out.print(f"[bold]{version.reference}[/bold]  {escape(from_here(str(version.path)))}")
    out.print(f"content {version.manifest.content_sha256}, made {version.manifest.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(
        f"{summary.questions:,} questions, {summary.chains} chains; graded by {', '.join(version.manifest.grader)}"
    )
    show_accuracies(summary)
    show_differences(summary)
    for name, system in summary.systems.items():
        out.print(f"  {escape(name)}: {system.refining.sentence}")


def show_accuracies(summary: "Summary") -> None:
    """Print how often each system is right, in percent with 95 % intervals."""
    votes = f"@{summary.chains}"
    table = table_of("system", "SA", f"SA+MV{votes}", "MA", f"MA+MV{votes}", "tokens", "cost")
    for name, system in summary.systems.items():
        cells = map(percent, (system.sa, system.sa_mv, system.ma, system.ma_mv))
        tokens = "unknown" if system.tokens is None else f"{system.tokens:,}"
        table.add_row(escape(name), *cells, tokens, dollars(system.cost_usd))
    out.print(table)


def show_differences(summary: "Summary") -> None:
    """Print what each system has over the baseline."""
    if not summary.differences:
        return
    table = table_of(f"less {escape(summary.baseline)}", "points", "95 %", "p", "p (Holm)")
    for name, found in summary.differences.items():
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        table.add_row(escape(name), f"{100 * found.difference:+.1f}", interval, f"{found.p:.3g}", f"{found.p_holm:.3g}")
    out.print(table)


def percent(cell: "Cell") -> str:
    """Write an accuracy with its interval."""
    if cell.accuracy is None or cell.low is None or cell.high is None:
        return "n/a"
    return f"{100 * cell.accuracy:.1f} ({100 * cell.low:.0f}-{100 * cell.high:.0f})"


def listing(listed: "ListedEvaluations") -> JsonValue:
    """Return versions as JSON, and why others cannot be read."""
    return {
        "versions": [
            {
                "name": version.name,
                "version": version.number,
                "path": str(version.path),
                "created_at": version.manifest.created_at.isoformat(),
                "content_sha256": version.manifest.content_sha256,
                "questions": version.summary.questions,
                "systems": [*version.summary.systems],
            }
            for version in listed.versions
        ],
        "unreadable": {reference: str(error) for reference, error in listed.unreadable.items()},
    }


def show_evaluations(listed: "ListedEvaluations") -> None:
    """Print one line a version; on stderr for those that cannot be read."""
    for reference, error in listed.unreadable.items():
        err.print(f"error: {reference}: {escape(str(error))}")
    table = table_of("version", "questions", "systems.", "content.", "made.")
    for version in listed.versions:
        made, content = f"{version.manifest.created_at:%Y-%m-%d %H:%M}", version.manifest.content_sha256[:12]
        systems = ", ".join(version.summary.systems)
        table.add_row(version.reference, f"{version.summary.questions:,}", escape(systems), content, made)
    if listed.versions:
        out.print(table)
    elif not listed.unreadable:
        out.print("no evaluations yet; make one with: malt evaluate CONFIG")
