"""Commands that grade: `grade`, `audit`."""

from pathlib import Path

import click

from malt.cli.options import takes_grading, takes_json, takes_version


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--kind", "kinds", multiple=True, metavar="K", help="Grade by this kind; of several the first decisive.")
@takes_grading
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows with their grades: .jsonl or .parquet.")
@takes_json
def grade(
    file: str, kinds: tuple[str, ...], config: Path | None, override: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Grade rows of question, ground_truth, answer[, label]. With labels, say how far the grades agree with them."""
    from malt.cli.console import grading, terminal
    from malt.review.grade_file import grade_file
    from malt.review.grader_options import chosen_grading
    from malt.review.row_output import check_output, write_rows

    if out is not None:
        check_output(out)
    rows, report = grade_file(file, chosen_grading(kinds, config, override))
    if out is not None:
        write_rows((row.as_columns() for row in rows), out)
    terminal.emit(report.model_dump(mode="json")) if as_json else grading.show_grades(report)


@click.command()
@takes_version
@click.option("--with", "kinds", multiple=True, required=True, metavar="K", help="A kind of grader; may be repeated.")
@takes_grading
@takes_json
def audit(version: str, kinds: tuple[str, ...], config: Path | None, override: tuple[str, ...], as_json: bool) -> None:
    """Grade a version's leaves again with other graders. Says where they differ, and what would change."""
    from malt.cli.console import grading, terminal
    from malt.datasets.version.dataset_version import open_version
    from malt.review import audit as auditing
    from malt.review.grader_options import declared_grading, grading_of, read_kinds

    opened = open_version(version)
    declared = declared_grading(config, override, otherwise=grading_of(opened.spec))
    report = auditing.audit(opened, declared, read_kinds(kinds, "--with"))
    terminal.emit(report.model_dump(mode="json")) if as_json else grading.show_audit(report)
