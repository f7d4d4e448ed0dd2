"""Commands that grade: `grade`, `audit`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from malt.cli import terminal
from malt.cli.options import takes_grading, takes_json, takes_version, trusts_code
from malt.text import count_noun

if TYPE_CHECKING:
    from malt.review.audit import AuditReport, GraderPair, LeafDifference
    from malt.review.grade_file import Disagreement, GradeReport, LabelledReport, UnknownRow

_SHOWN = 10
"""Rows or leaves shown; the rest are counted."""


def _read_columns(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> Mapping[str, str]:
    pairs = dict(pair.split("=", 1) for pair in given if "=" in pair)
    if len(pairs) < len(given) or not pairs.keys() <= {"question", "ground_truth", "answer", "label"}:
        raise click.BadParameter(f"{' '.join(given)}: write answer=COLUMN; also question, ground_truth, label")
    return pairs


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--kind", "kinds", multiple=True, metavar="K", help="Kind of grader; of several, the first to decide.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=_read_columns,
    metavar="NAME=COLUMN",
    help="Read question, ground_truth, answer or label from COLUMN; may be repeated.",
)
@takes_grading
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their grades: .jsonl or .parquet.")
@takes_json
def grade(
    file: str,
    kinds: tuple[str, ...],
    columns: Mapping[str, str],
    config: Path | None,
    override: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Grade rows of question, ground_truth, answer[, label]. With labels, report how well the grades agree."""
    from malt.review.grade_file import check_output, grade_file, write_graded
    from malt.review.grader_options import chosen_grading

    if out is not None:
        check_output(out)
    rows, report = grade_file(file, chosen_grading(kinds, config, override), columns)
    if out is not None:
        write_graded((row.as_columns() for row in rows), out)
    terminal.show_report(report, _show_grades, as_json=as_json)


def _show_grades(report: "GradeReport") -> None:
    from malt.review.grade_file import LabelledReport

    graded_by = f"graded by {', '.join(report.kinds)} in {report.wall_s:.1f} s"
    terminal.say(f"{report.file}: {report.rows:,} rows {graded_by}")
    _show_counts(report)
    if report.unread or report.disputed:
        terminal.say(f"{report.unread:,} wrong answers were not fully read; {report.disputed:,} rows are disputed")
    if len(report.kinds) > 1:
        _show_deciders(report)
    _show_judge_use(report.requests, report.cost_usd)
    _show_unknown(report.unknown_rows)
    if isinstance(report, LabelledReport):
        _show_agreement(report)


def _show_counts(report: "GradeReport") -> None:
    table = terminal.new_table("outcome", "rows", "share")
    for name in ("right", "wrong", "unanswered", "unknown"):
        count: int = getattr(report, name)
        table.add_row(name, f"{count:,}", _format_percent(count / report.rows))
    terminal.say(table)


def _show_deciders(report: "GradeReport") -> None:
    decided = ", ".join(f"{kind} {count:,}" for kind, count in report.decided.items())
    terminal.say(f"decided by: {decided or 'none'}")


def _show_unknown(rows: "Sequence[UnknownRow]") -> None:
    if rows:
        terminal.say("unknown, and left out of comparisons:")
    for row in rows[:_SHOWN]:
        terminal.say(f"  {row.place}: {terminal.one_line(row.error or 'no reason was given')}")
    terminal.show_rest(len(rows) - _SHOWN)


def _show_agreement(report: "LabelledReport") -> None:
    left_out = report.labelled - report.compared
    agreement, kappa = _format_percent(report.agreement), _format_kappa(report.kappa)
    unknown = f"; {left_out:,} unknown left out" if left_out else ""
    terminal.say(f"agreement {agreement} of {report.compared:,} labelled rows, kappa {kappa}{unknown}")
    outcomes = list(report.confusion["right"])
    table = terminal.new_table("label", *(f"graded {outcome}" for outcome in outcomes))
    for label, counts in report.confusion.items():
        table.add_row(label, *(f"{counts[outcome]:,}" for outcome in outcomes))
    terminal.say(table)
    if report.disagreements:
        _show_disagreements(report.disagreements)


def _show_disagreements(rows: "Sequence[Disagreement]") -> None:
    from malt.grading.grades import brief

    terminal.say("where grade and label differ:")
    for row in rows[:_SHOWN]:
        read = "nothing" if row.read is None else brief(row.read)
        graded = f"label {row.label}, graded {row.outcome} by {row.grader}"
        terminal.say(f"  {row.place}: {graded}: read {read}, reference {brief(row.reference)}")
    terminal.show_rest(len(rows) - _SHOWN)


@click.command()
@takes_version
@click.option("--with", "kinds", multiple=True, required=True, metavar="K", help="Kind of grader; may be repeated.")
@takes_grading
@trusts_code
@takes_json
def audit(
    version: str,
    kinds: tuple[str, ...],
    config: Path | None,
    override: tuple[str, ...],
    trust_code: bool,
    as_json: bool,
) -> None:
    """Grade a version's leaves again with other graders. Shows where they differ and what would change."""
    from malt.datasets.version.dataset_version import open_version
    from malt.review import audit as auditing
    from malt.review.grader_options import audit_grading, read_kinds

    opened, graders = open_version(version), read_kinds(kinds, "--with")
    report = auditing.audit(opened, audit_grading(opened, graders, config, override, trust_code=trust_code), graders)
    terminal.show_report(report, _show_audit, as_json=as_json)


def _show_audit(report: "AuditReport") -> None:
    cut = f" ({report.truncated:,} cut off, seen by no grader)" if report.truncated else ""
    terminal.say(
        f"{report.version}: {report.leaves:,} leaves{cut} of {count_noun(report.questions, 'question')}, "
        f"graded by {', '.join(report.graded_by)}; graded again by {', '.join(report.kinds)} in {report.wall_s:.1f} s"
    )
    _show_judge_use(report.requests, report.cost_usd)
    _show_outcomes(report)
    _show_matrix(report)
    for kind in report.kinds:
        _show_changes(report, kind)
    _show_differences(report.differences)


def _show_outcomes(report: "AuditReport") -> None:
    from malt.grading.grades import Outcome

    table = terminal.new_table("grader", *Outcome)
    for name, counts in report.outcomes.items():
        table.add_row(name, *map("{:,}".format, counts.values()))
    terminal.say(table)


def _show_matrix(report: "AuditReport") -> None:
    pairs = {pair.graders: pair for pair in report.agreement}
    names = list(report.outcomes)
    table = terminal.new_table("agreement, kappa, leaves", *(f"{name}." for name in names[1:]))
    for row in names[:-1]:
        found = [pairs.get((row, column)) for column in names[1:]]
        table.add_row(row, *("" if pair is None else _format_pair(pair) for pair in found))
    terminal.say(table)


def _format_pair(pair: "GraderPair") -> str:
    unknown = f" (+{pair.unknown:,} unknown)" if pair.unknown else ""
    return f"{_format_percent(pair.agreement)}  {_format_kappa(pair.kappa)}  {pair.compared:,}{unknown}"


def _show_changes(report: "AuditReport", kind: str) -> None:
    """Print the changes to the version if one grader's grades were used."""
    terminal.say(f"with the grades of {kind}:")
    changed = ("labels changed", "SFT rows", "added", "removed", "DPO pairs", "added", "removed")
    table = terminal.new_table("role", "nodes", *changed)
    for role, change in report.changes[kind].items():
        table.add_row(role.value, *map("{:,}".format, change.model_dump().values()))
    terminal.say(table)


def _show_differences(differences: "Sequence[LeafDifference]") -> None:
    from malt.grading.grades import brief

    terminal.say(f"{len(differences):,} leaves on which graders differ{':' if differences else ''}")
    for leaf in differences[:_SHOWN]:
        terminal.say(f"  {leaf.question_id}/{leaf.node_id}  reference {brief(leaf.reference)}")
        for name, grade in leaf.grades.items():
            read = "nothing" if grade.read is None else brief(grade.read)
            terminal.say(f"    {name:<8} {grade.outcome:<10} read {read}")
    terminal.show_rest(len(differences) - _SHOWN)


def _show_judge_use(requests: int, cost_usd: float | None) -> None:
    if requests:
        terminal.say(f"judge: {requests:,} requests, cost {terminal.format_dollars(cost_usd)}")


def _format_percent(share: float | None) -> str:
    """Write a share in percent, never rounded up to 100 %."""
    if share is None:
        return "unknown"
    return "100 %" if share == 1 else f"{min(share, 0.9999) * 100:.2f} %"


def _format_kappa(kappa: float | None) -> str:
    return "undefined" if kappa is None else f"{kappa:.3f}"
