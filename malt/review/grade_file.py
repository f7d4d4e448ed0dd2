"""Grading of a file of answers: rows of question, reference and answer, with optional labels to compare grades to.

The graded rows are written to one file, completely or not at all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from pydantic import JsonValue

from malt.config.base import Recorded
from malt.config.questions import QuestionSource
from malt.datasets.rows.files import clean_texts, json_line
from malt.errors import InputError, QuestionError
from malt.files import replacing
from malt.grading.graders import grade
from malt.grading.grades import Grade, Outcome
from malt.questions.question import Question, read_cell, read_question
from malt.questions.readers import Row, excerpt, join_names, read_rows, strip_secrets
from malt.review.grader_options import (
    GraderChoice,
    OpenedGraders,
    VerdictPairs,
    grade_all,
    measure_agreement,
)

Columns = Mapping[str, JsonValue]

_COLUMNS = ("question", "ground_truth", "answer")
_LABELS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "right", "correct", "yes"), True),
    **dict.fromkeys(("false", "0", "wrong", "incorrect", "no"), False),
}
_ROWS_AT_ONCE = 5_000
"""Rows graded in one window; the judge's stored replies are read for a window at once."""


class AnswerRow(NamedTuple):
    """Row of the file: an answer to a question, and the label that says whether it is right."""

    row: Row
    question: Question
    answer: str
    label: bool | None
    """None where the row has no label."""


class GradedRow(NamedTuple):
    """One row with its grade."""

    answered: AnswerRow
    grade: Grade

    @property
    def differs(self) -> bool:
        """Whether grade and label are both known and contradict each other."""
        graded = self.grade.outcome.truth
        return None not in (graded, self.answered.label) and graded is not self.answered.label

    def as_columns(self) -> dict[str, JsonValue]:
        """Return the row as it was read, with the grade's columns, which replace columns of the same name."""
        grade = self.grade
        return {
            **self.answered.row.values,
            "outcome": grade.outcome.value,
            "read": grade.answer,
            "score": grade.reward,
            "grader": grade.grader,
            "unread": grade.is_unread,
            "error": grade.error,
        }


class Disagreement(Recorded):
    """A row whose grade contradicts its label."""

    place: str
    label: str
    outcome: str
    read: str | None
    reference: str
    grader: str


class UnknownRow(Recorded):
    """A row whose grade is unknown, and why."""

    place: str
    error: str | None


class GradeReport(Recorded):
    """Report on a graded file: right, wrong, unanswered and unknown rows add up to all rows."""

    file: str
    kinds: tuple[str, ...]
    rows: int
    right: int
    wrong: int
    """Answers that are not right, including those that no grader could read completely."""
    unread: int
    """Wrong answers that no grader could read completely."""
    disputed: int
    """Rows on which two methods of comparing mathematics disagree."""
    unanswered: int
    """Rows in which no answer could be read; compared with a label they count as wrong."""
    unknown: int
    """Rows on which the graders failed, or for which none could use the reference."""
    unknown_rows: tuple[UnknownRow, ...]
    decided: dict[str, int]
    """Number of rows by the grader that decided, without unknown ones."""
    requests: int
    """Requests sent to a judge."""
    cost_usd: float | None
    """Cost of the judge; None where it is not known."""
    wall_s: float


class LabelledReport(GradeReport):
    """Report on a file with labels. Rows without a label or with an unknown grade are not compared."""

    labelled: int
    compared: int
    """Labelled rows whose grade is known."""
    agreement: float | None
    """Share of the compared rows whose grade equals the label."""
    kappa: float | None
    """Cohen's kappa; None where all labels and grades are the same value, so that kappa is undefined."""
    confusion: dict[str, dict[str, int]]
    """Number of labelled rows by label, then by outcome."""
    disagreements: tuple[Disagreement, ...]


def read_answers(source: str, columns: Mapping[str, str] = MappingProxyType({})) -> list[AnswerRow]:
    """Read and check a whole file: .jsonl, .json, .csv or .parquet, on disk or at an address.

    `columns` maps `question`, `ground_truth`, `answer` or `label` to the file's own name for that column.

    References are read as in question files: the text after a last line's `####`, the content of a `\\boxed{}`, else
    the whole text. Raises `QuestionError` naming file and line.
    """
    declared = QuestionSource(source=source, question="question", ground_truth="ground_truth")
    answers = [_read_answer(_rename_columns(row, columns), declared) for row in read_rows(source)]
    if not answers:
        raise QuestionError(f"{strip_secrets(source)}: no rows in it; give rows of {', '.join(_COLUMNS)}[, label]")
    return answers


def _rename_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Add copies of the columns under the standard names. Raises `QuestionError` for a missing column."""
    if absent := [column for column in columns.values() if column not in row.values]:
        raise QuestionError(f"{row.place}: --column: no column {absent[0]!r}; it has: {join_names(row.values)}")
    return row._replace(values={**row.values, **{name: row.values[column] for name, column in columns.items()}})


def _read_answer(row: Row, declared: QuestionSource) -> AnswerRow:
    for column in _COLUMNS:
        if column not in row.values:
            has = join_names(row.values)
            raise QuestionError(
                f"{row.place}: no column {column!r}; it has: {has}; rows need {', '.join(_COLUMNS)}, "
                f"or say which column it is: --column {column}=NAME"
            )
    return AnswerRow(row, read_question(row, declared), _read_text(row), _read_label(row))


def _read_text(row: Row) -> str:
    """Return the answer as it was written; an empty one is allowed."""
    answer = row.values["answer"]
    try:
        return answer if isinstance(answer, str) else read_cell(answer, "answer")
    except QuestionError as error:
        raise QuestionError(f"{row.place}: {error}") from error


def _read_label(row: Row) -> bool | None:
    """Return True for a row labelled right, False for one labelled wrong, None without a label."""
    value = row.values.get("label")
    if value is None or value == "":
        return None
    label = None if isinstance(value, list | dict) else _LABELS.get(read_cell(value, "label").lower())
    if label is None:
        raise QuestionError(f"{row.place}: label {excerpt(value)} cannot be read; write one of {', '.join(_LABELS)}")
    return label


class GradedFile(NamedTuple):
    """Graded rows of a file, and the report on them."""

    rows: list[GradedRow]
    report: GradeReport


def grade_file(source: str, grading: GraderChoice, columns: Mapping[str, str] = MappingProxyType({})) -> GradedFile:
    """Grade the answers of a file that `read_answers` can read; a judge's calls go through the store.

    Raises `InputError` for a faulty file or grader, before any model call, and `RunStopped` at a limit.
    """
    started = time.perf_counter()
    answers, graders = read_answers(source, columns), OpenedGraders(grading)
    rows: list[GradedRow] = []

    async def grade_rows() -> None:  # returns nothing: `asyncio.run` formats the result of its task, which is slow
        for start in range(0, len(answers), _ROWS_AT_ONCE):
            some = answers[start : start + _ROWS_AT_ONCE]
            rows.extend(map(GradedRow, some, await _grade_some(some, graders)))

    asyncio.run(grade_rows())
    return GradedFile(rows, _report(source, rows, graders, time.perf_counter() - started))


async def _grade_some(answers: Sequence[AnswerRow], graders: OpenedGraders) -> list[Grade]:
    opened = graders.for_questions(row.question.question_id for row in answers)
    asked = [partial(grade, row.question, row.answer, opened) for row in answers]
    return await grade_all(asked, graders.grading.limits)


def _report(source: str, rows: Sequence[GradedRow], graders: OpenedGraders, wall_s: float) -> GradeReport:
    outcomes = Counter(row.grade.outcome for row in rows)
    unknown = [row for row in rows if row.grade.outcome is Outcome.UNKNOWN]
    used = graders.used
    report = GradeReport(
        file=strip_secrets(source),
        kinds=graders.grading.evaluator.kind,
        rows=len(rows),
        right=outcomes[Outcome.RIGHT],
        wrong=outcomes[Outcome.WRONG],
        unread=sum(row.grade.is_unread for row in rows),
        disputed=sum(row.grade.is_disputed for row in rows),
        unanswered=outcomes[Outcome.UNANSWERED],
        unknown=len(unknown),
        unknown_rows=tuple(UnknownRow(place=row.answered.row.place, error=row.grade.error) for row in unknown),
        decided=dict(Counter(row.grade.grader for row in rows if row.grade.outcome is not Outcome.UNKNOWN)),
        requests=used.requests,
        cost_usd=used.cost_usd,
        wall_s=round(wall_s, 3),
    )
    labelled = [row for row in rows if row.answered.label is not None]
    return _add_comparison(report, labelled) if labelled else report


def _add_comparison(report: GradeReport, rows: Iterable[GradedRow]) -> LabelledReport:
    counts = Counter((row.answered.label, row.grade.outcome) for row in rows)
    verdicts: VerdictPairs = Counter()
    for (label, outcome), count in counts.items():
        verdicts[label, outcome.truth] += count
    found = measure_agreement(verdicts)
    return LabelledReport(
        **report.model_dump(),
        **found.model_dump(exclude={"unknown"}),
        labelled=counts.total(),
        confusion={_name_label(label): _count_outcomes(counts, label) for label in (True, False)},
        disagreements=tuple(_describe_disagreement(row) for row in rows if row.differs),
    )


def _count_outcomes(counts: Counter[tuple[bool | None, Outcome]], label: bool) -> dict[str, int]:
    return {outcome.value: counts[label, outcome] for outcome in _POSSIBLE}


_POSSIBLE = (Outcome.RIGHT, Outcome.WRONG, Outcome.UNANSWERED, Outcome.UNKNOWN)
"""Outcomes that a row can have: without TRUNCATED, since a file does not say what was cut off at max_tokens."""


def _name_label(label: bool | None) -> str:
    return "right" if label else "wrong"


def _describe_disagreement(row: GradedRow) -> Disagreement:
    return Disagreement(
        place=row.answered.row.place,
        label=_name_label(row.answered.label),
        outcome=row.grade.outcome.value,
        read=row.grade.answer,
        reference=row.answered.question.ground_truth,
        grader=row.grade.grader,
    )


def check_output(path: Path) -> None:
    """Raise `InputError` if rows cannot be written to this path."""
    if path.suffix not in _WRITERS:
        raise InputError(f"--out {path}: cannot tell its format; it must end in {' or '.join(_WRITERS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


def write_graded(rows: Iterable[Columns], path: Path) -> None:
    """Write rows in order; replaces an earlier file, or a link, once the new file is complete. Raises `InputError`."""
    try:
        with replacing(path) as file:
            _WRITERS[path.suffix](list(rows), file)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}") from error


def _write_jsonl(rows: Sequence[Columns], file: BinaryIO) -> None:
    file.writelines(json_line(row) + b"\n" for row in rows)


def _write_parquet(rows: Sequence[Columns], file: BinaryIO) -> None:
    """Write columns, null where a row lacks one. Raises `InputError` if a column's values have no common type."""
    import pyarrow as pa
    from pyarrow import parquet

    columns, problem = {}, ""
    try:
        for name in dict.fromkeys(name for row in rows for name in row):
            problem = f"column {name!r} fits no Parquet type"
            columns[name] = pa.array([clean_texts(row.get(name)) for row in rows])
        problem = "the rows fit no Parquet file"
        parquet.write_table(pa.table(columns), file)
    except pa.ArrowException as error:
        raise InputError(f"{problem} ({error}); write a .jsonl file instead") from error


_WRITERS: Mapping[str, Callable[[Sequence[Columns], BinaryIO], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
