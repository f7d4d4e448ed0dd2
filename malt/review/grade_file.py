"""Grading a file of answers: rows of question, reference and answer, perhaps with labels to compare the grades to.

The rows are written with their grades to one file, whole or not at all.
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
"""Rows between two waits for all that is under way; what the store has of a judge is read for as many."""


class AnswerRow(NamedTuple):
    """One row: an answer to a question, and whether somebody found it right."""

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
        """Whether grade and label contradict each other."""
        graded = self.grade.outcome.truth
        return None not in (graded, self.answered.label) and graded is not self.answered.label

    def as_columns(self) -> dict[str, JsonValue]:
        """Return the row as it was read, with the grade's columns; a column of the same name gives way."""
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
    """What came of a file. The four outcomes add up to the rows."""

    file: str
    kinds: tuple[str, ...]
    rows: int
    right: int
    wrong: int
    """Answers that are not right, those that no grader could read whole among them."""
    unread: int
    """Wrong ones that no grader could read whole."""
    disputed: int
    """Rows on which two ways of comparing mathematics disagree."""
    unanswered: int
    """No answer could be read; to be compared with a label this is wrong."""
    unknown: int
    """The graders failed, or none could use the reference."""
    unknown_rows: tuple[UnknownRow, ...]
    decided: dict[str, int]
    """Rows by the grader whose grade it is; unknown ones left out."""
    requests: int
    """Sent to a judge."""
    cost_usd: float | None
    """What the judge cost; None where that is not known."""
    wall_s: float


class LabelledReport(GradeReport):
    """A report on a file with labels: rows without one are not compared, nor those whose grade is unknown."""

    labelled: int
    compared: int
    """Labelled rows whose grade is known."""
    agreement: float | None
    """Share of the compared rows whose grade is the label."""
    kappa: float | None
    """Cohen's kappa; None where labels and grades all are one and the same, so that it says nothing."""
    confusion: dict[str, dict[str, int]]
    """Labelled rows by label, then by outcome."""
    disagreements: tuple[Disagreement, ...]


def read_answers(source: str, columns: Mapping[str, str] = MappingProxyType({})) -> list[AnswerRow]:
    """Read and check a whole file, .jsonl .json .csv .parquet, here or at an address.

    `columns` says which column holds `question`, `ground_truth`, `answer` or `label` where it is called otherwise.

    References are read as question files' are: what follows a last line's `####`, what is in a `\\boxed{}`, else all.
    Raises `QuestionError` naming file and line.
    """
    declared = QuestionSource(source=source, question="question", ground_truth="ground_truth")
    answers = [_read_answer(_rename_columns(row, columns), declared) for row in read_rows(source)]
    if not answers:
        raise QuestionError(f"{strip_secrets(source)}: no rows in it; give rows of {', '.join(_COLUMNS)}[, label]")
    return answers


def _rename_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Add the columns under the names that are read. Raises `QuestionError` for one that is not there."""
    if absent := [column for column in columns.values() if column not in row.values]:
        raise QuestionError(f"{row.place}: --column: no column {absent[0]!r}; it has: {join_names(row.values)}")
    return row._replace(values={**row.values, **{name: row.values[column] for name, column in columns.items()}})


def _read_answer(row: Row, declared: QuestionSource) -> AnswerRow:
    for column in _COLUMNS:
        if column not in row.values:
            has = join_names(row.values) or "none"
            raise QuestionError(
                f"{row.place}: no column {column!r}; it has: {has}; rows need {', '.join(_COLUMNS)}, "
                f"or say which column it is: --column {column}=NAME"
            )
    return AnswerRow(row, read_question(row, declared), _read_text(row), _read_label(row))


def _read_text(row: Row) -> str:
    """Return the answer as it was written; one that is empty is an answer too."""
    answer = row.values["answer"]
    try:
        return answer if isinstance(answer, str) else read_cell(answer, "answer")
    except QuestionError as error:
        raise QuestionError(f"{row.place}: {error}") from error


def _read_label(row: Row) -> bool | None:
    """Return whether the row is labelled right; None where it has no label."""
    value = row.values.get("label")
    if value is None or value == "":
        return None
    label = None if isinstance(value, list | dict) else _LABELS.get(read_cell(value, "label").lower())
    if label is None:
        raise QuestionError(f"{row.place}: label {excerpt(value)} cannot be read; write one of {', '.join(_LABELS)}")
    return label


class GradedFile(NamedTuple):
    """All rows with their grades, and the report on them."""

    rows: list[GradedRow]
    report: GradeReport


def grade_file(source: str, grading: GraderChoice, columns: Mapping[str, str] = MappingProxyType({})) -> GradedFile:
    """Grade a file's answers, read as `read_answers` says; a judge is asked through the store.

    Raises `InputError` for what is wrong with file or graders, before any model call, and `RunStopped` at a limit.
    """
    started = time.perf_counter()
    answers, graders = read_answers(source, columns), OpenedGraders(grading)
    rows: list[GradedRow] = []

    async def grade_rows() -> None:  # returns none: `asyncio.run` formats what its task returns, which is slow
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
"""What can become of a row: a file does not say what was cut off at max_tokens."""


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
    """Make sure that rows can be written there. Raises `InputError`."""
    if path.suffix not in _WRITERS:
        raise InputError(f"--out {path}: cannot tell its format; it must end in {' or '.join(_WRITERS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


def write_graded(rows: Iterable[Columns], path: Path) -> None:
    """Write rows in order; an earlier file, or a link, gives way once the new one is whole. Raises `InputError`."""
    try:
        with replacing(path) as file:
            _WRITERS[path.suffix](list(rows), file)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}") from error


def _write_jsonl(rows: Sequence[Columns], file: BinaryIO) -> None:
    file.writelines(json_line(row) + b"\n" for row in rows)


def _write_parquet(rows: Sequence[Columns], file: BinaryIO) -> None:
    """Write columns; a row without one has null there. Raises `InputError` where a column's values share no type."""
    import pyarrow as pa
    from pyarrow import parquet

    columns, what = {}, ""
    try:
        for name in dict.fromkeys(name for row in rows for name in row):
            what = f"column {name!r} fits no Parquet type"
            columns[name] = pa.array([clean_texts(row.get(name)) for row in rows])
        what = "the rows fit no Parquet file"
        parquet.write_table(pa.table(columns), file)
    except pa.ArrowException as error:
        raise InputError(f"{what} ({error}); write a .jsonl file instead") from error


_WRITERS: Mapping[str, Callable[[Sequence[Columns], BinaryIO], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
