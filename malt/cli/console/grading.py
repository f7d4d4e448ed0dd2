"""What `malt grade` and `malt audit` print for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from malt.cli.console.terminal import dollars, one_line, out, table_of
from malt.grading.graders import Outcome, brief
from malt.review.grade_file import GradeReport, LabelledReport, UnknownRow

if TYPE_CHECKING:
    from malt.review.audit import AuditReport, Difference, GraderPair

SHOWN = 10
"""Rows or leaves told of; the rest are counted."""


def show_grades(report: GradeReport) -> None:
    """Print what came of a file of answers."""
    out.print(
        f"{escape(report.file)}: {report.rows:,} rows graded by {', '.join(report.kinds)} in {report.wall_s:.1f} s"
    )
    table = table_of("outcome", "rows", "share")
    for name, count in (
        ("right", report.right),
        ("wrong", report.wrong),
        ("unanswered", report.unanswered),
        ("unknown", report.unknown),
    ):
        table.add_row(name, f"{count:,}", percent(count / report.rows))
    out.print(table)
    if len(report.kinds) > 1:
        out.print(f"decided by: {', '.join(f'{kind} {count:,}' for kind, count in report.decided.items()) or 'none'}")
    show_use(report.requests, report.cost_usd)
    show_unknown(report.unknown_rows)
    if isinstance(report, LabelledReport):
        show_labels(report)


def show_unknown(rows: Sequence[UnknownRow]) -> None:
    """Print why grades are unknown."""
    if rows:
        out.print("unknown, and in no comparison:")
    for row in rows[:SHOWN]:
        out.print(f"  {escape(row.place)}: {escape(one_line(row.error or 'no reason was given'))}")
    show_more(len(rows))


def show_labels(report: LabelledReport) -> None:
    """Print how grades and labels agree, and where they do not."""
    left_out = report.labelled - report.compared
    out.print(
        f"agreement {percent(report.agreement)} of {report.compared:,} labelled rows, kappa {figure(report.kappa)}"
        + (f"; {left_out:,} unknown left out" if left_out else "")
    )
    outcomes = list(report.confusion["right"])
    table = table_of("label", *(f"graded {outcome}" for outcome in outcomes))
    for label, counts in report.confusion.items():
        table.add_row(label, *(f"{counts[outcome]:,}" for outcome in outcomes))
    out.print(table)
    if report.disagreements:
        out.print("where grade and label differ:")
    for row in report.disagreements[:SHOWN]:
        read = "nothing" if row.read is None else brief(row.read)
        told = f"label {row.label}, graded {row.outcome} by {row.grader}: read {read}, reference {brief(row.reference)}"
        out.print(f"  {escape(row.place)}: {escape(told)}")
    show_more(len(report.disagreements))


def show_audit(report: "AuditReport") -> None:
    """Print what other graders say of a version."""
    cut = f" ({report.truncated:,} cut off, seen by no grader)" if report.truncated else ""
    out.print(
        f"{report.version}: {report.leaves:,} leaves{cut} of {report.questions:,} questions, "
        f"graded by {', '.join(report.graded_by)}; graded again by {', '.join(report.kinds)} in {report.wall_s:.1f} s"
    )
    show_use(report.requests, report.cost_usd)
    show_outcomes(report)
    show_matrix(report)
    for kind in report.kinds:
        show_changes(report, kind)
    show_differences(report.differences)


def show_outcomes(report: "AuditReport") -> None:
    """Print the leaves by grader and outcome."""
    table = table_of("grader", *Outcome)
    for name, counts in report.outcomes.items():
        table.add_row(name, *map("{:,}".format, counts.values()))
    out.print(table)


def show_matrix(report: "AuditReport") -> None:
    """Print how far each two graders agree."""
    pairs = {pair.graders: pair for pair in report.agreement}
    names = list(report.outcomes)
    table = table_of("agreement, kappa, leaves", *(f"{name}." for name in names[1:]))
    for row in names[:-1]:
        found = [pairs.get((row, column)) for column in names[1:]]
        table.add_row(row, *("" if pair is None else cell(pair) for pair in found))
    out.print(table)


def cell(pair: "GraderPair") -> str:
    """Write how far two graders agree."""
    unknown = f" (+{pair.unknown:,} unknown)" if pair.unknown else ""
    return f"{percent(pair.agreement)}  {figure(pair.kappa)}  {pair.compared:,}{unknown}"


def show_changes(report: "AuditReport", kind: str) -> None:
    """Print what one grader's grades would make of the version."""
    out.print(f"with the grades of {kind}:")
    table = table_of("role", "nodes", "labels changed", "SFT rows", "added", "removed", "DPO pairs", "added", "removed")
    for role, change in report.changes[kind].items():
        table.add_row(role.value, *map("{:,}".format, change.model_dump().values()))
    out.print(table)


def show_differences(differences: "Sequence[Difference]") -> None:
    """Print the leaves on which graders differ, and what each of them read."""
    out.print(f"{len(differences):,} leaves on which graders differ{':' if differences else ''}")
    for leaf in differences[:SHOWN]:
        out.print(f"  {escape(leaf.question_id)}/{leaf.node_id}  reference {escape(brief(leaf.reference))}")
        for name, grade in leaf.grades.items():
            read = "nothing" if grade.read is None else brief(grade.read)
            out.print(f"    {name:<8} {grade.outcome:<10} read {escape(read)}")
    show_more(len(differences))


def show_more(count: int) -> None:
    """Print how many were not told of."""
    if count > SHOWN:
        out.print(f"  … and {count - SHOWN:,} more; --json has all")


def show_use(requests: int, cost_usd: float | None) -> None:
    """Print what a judge used, where it was asked."""
    if requests:
        out.print(f"judge: {requests:,} requests, cost {dollars(cost_usd)}")


def percent(share: float | None) -> str:
    """Write a share, never rounded up to all."""
    if share is None:
        return "unknown"
    return "100 %" if share == 1 else f"{min(share, 0.9999) * 100:.2f} %"


def figure(kappa: float | None) -> str:
    """Write a kappa."""
    return "undefined" if kappa is None else f"{kappa:.3f}"
