"""Grading a file of answers: rows of question, reference and answer, perhaps with labels to compare the grades to."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue

from malt.config.spec import QuestionSource
from malt.errors import QuestionError
from malt.grading.graders import Grade, Outcome, grade
from malt.questions.question import Question, cell_text, read_question
from malt.questions.readers import Row, excerpt, listed, read_rows, without_secrets
from malt.review.agreement import Agreement, Verdicts, agreement_of, verdict
from malt.review.grader_options import Grading, OpenedGraders, grade_all

COLUMNS = ("question", "ground_truth", "answer")
LABELS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "right", "correct", "yes"), True),
    **dict.fromkeys(("false", "0", "wrong", "incorrect", "no"), False),
}
ROWS_AT_ONCE = 5_000
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
        graded = verdict(self.grade.outcome)
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
            "error": grade.error,
        }


class Disagreement(BaseModel):
    """A row whose grade contradicts its label."""

    model_config = ConfigDict(frozen=True)

    place: str
    label: str
    outcome: str
    read: str | None
    reference: str
    grader: str


class UnknownRow(BaseModel):
    """A row whose grade is unknown, and why."""

    model_config = ConfigDict(frozen=True)

    place: str
    error: str | None


class GradeReport(BaseModel):
    """What came of a file. The four outcomes add up to the rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    kinds: tuple[str, ...]
    rows: int
    right: int
    wrong: int
    """Answers that were read and are not right."""
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


def read_answers(source: str) -> list[AnswerRow]:
    """Read and check a whole file, .jsonl .json .csv .parquet, here or at an address.

    References are read as question files' are: what follows a last line's `####`, what is in a `\\boxed{}`, else all.
    Raises `QuestionError` naming file and line.
    """
    declared = QuestionSource(source=source, question="question", ground_truth="ground_truth")
    answers = [read_answer(row, declared) for row in read_rows(source)]
    if not answers:
        raise QuestionError(f"{without_secrets(source)}: no rows in it; give rows of {', '.join(COLUMNS)}[, label]")
    return answers


def read_answer(row: Row, declared: QuestionSource) -> AnswerRow:
    """Read one row."""
    for column in COLUMNS:
        if column not in row.values:
            has = listed(row.values) or "none"
            raise QuestionError(f"{row.place}: no column {column!r}; it has: {has}; rows need {', '.join(COLUMNS)}")
    return AnswerRow(row, read_question(row, declared), answer_text(row), read_label(row))


def answer_text(row: Row) -> str:
    """Return the answer as it was written; one that is empty is an answer too."""
    answer = row.values["answer"]
    try:
        return answer if isinstance(answer, str) else cell_text(answer, "answer")
    except QuestionError as error:
        raise QuestionError(f"{row.place}: {error}") from error


def read_label(row: Row) -> bool | None:
    """Return whether the row is labelled right; None where it has no label."""
    value = row.values.get("label")
    if value is None or value == "":
        return None
    label = None if isinstance(value, list | dict) else LABELS.get(cell_text(value, "label").lower())
    if label is None:
        raise QuestionError(f"{row.place}: label {excerpt(value)} cannot be read; write one of {', '.join(LABELS)}")
    return label


class GradedFile(NamedTuple):
    """All rows with their grades, and the report on them."""

    rows: list[GradedRow]
    report: GradeReport


def grade_file(source: str, grading: Grading) -> GradedFile:
    """Grade a file's answers; a judge is asked through the store.

    Raises `InputError` for what is wrong with file or graders, before any model call, and `RunStopped` at a limit.
    """
    started = time.perf_counter()
    answers, graders = read_answers(source), OpenedGraders(grading)
    rows: list[GradedRow] = []
    asyncio.run(grade_into(rows, answers, graders))
    return GradedFile(rows, report_on(source, rows, graders, time.perf_counter() - started))


async def grade_into(rows: list[GradedRow], answers: Sequence[AnswerRow], graders: OpenedGraders) -> None:
    """Append every answer with its grade.

    Returns nothing, because `asyncio.run` formats what its task returns: of many rows that takes longer than grading.
    """
    for start in range(0, len(answers), ROWS_AT_ONCE):
        rows += await grade_rows(answers[start : start + ROWS_AT_ONCE], graders)


async def grade_rows(answers: Sequence[AnswerRow], graders: OpenedGraders) -> list[GradedRow]:
    """Grade some rows at once."""
    opened = graders.for_questions(row.question.question_id for row in answers)
    grades = await grade_all(
        [partial(grade, row.question, row.answer, opened) for row in answers], graders.grading.limits
    )
    return [GradedRow(row, given) for row, given in zip(answers, grades, strict=True)]


def report_on(source: str, rows: Sequence[GradedRow], graders: OpenedGraders, wall_s: float) -> GradeReport:
    """Count what came of the rows."""
    outcomes = Counter(row.grade.outcome for row in rows)
    used = graders.used
    report = GradeReport(
        file=without_secrets(source),
        kinds=graders.grading.evaluator.kind,
        rows=len(rows),
        right=outcomes[Outcome.RIGHT],
        wrong=outcomes[Outcome.WRONG],
        unanswered=outcomes[Outcome.UNANSWERED],
        unknown=outcomes[Outcome.UNKNOWN],
        unknown_rows=tuple(
            UnknownRow(place=row.answered.row.place, error=row.grade.error)
            for row in rows
            if row.grade.outcome is Outcome.UNKNOWN
        ),
        decided=dict(Counter(row.grade.grader for row in rows if row.grade.outcome is not Outcome.UNKNOWN)),
        requests=used.requests,
        cost_usd=used.cost_usd,
        wall_s=round(wall_s, 3),
    )
    labelled = [row for row in rows if row.answered.label is not None]
    return compared(report, labelled) if labelled else report


def compared(report: GradeReport, rows: Iterable[GradedRow]) -> LabelledReport:
    """Add what comparing grades with labels gives."""
    counts = Counter((row.answered.label, row.grade.outcome) for row in rows)
    verdicts: Verdicts = Counter()
    for (label, outcome), count in counts.items():
        verdicts[label, verdict(outcome)] += count
    found: Agreement = agreement_of(verdicts)
    return LabelledReport(
        **report.model_dump(),
        labelled=counts.total(),
        compared=found.compared,
        agreement=found.agreement,
        kappa=found.kappa,
        confusion={
            name_of(label): {outcome.value: counts[label, outcome] for outcome in Outcome if outcome in POSSIBLE}
            for label in (True, False)
        },
        disagreements=tuple(disagreement(row) for row in rows if row.differs),
    )


POSSIBLE = (Outcome.RIGHT, Outcome.WRONG, Outcome.UNANSWERED, Outcome.UNKNOWN)
"""What can become of a row: a file does not say what was cut off at max_tokens."""


def name_of(label: bool | None) -> str:
    """Write a label."""
    return "right" if label else "wrong"


def disagreement(row: GradedRow) -> Disagreement:
    """Say where a grade and a label contradict each other, and what was read."""
    return Disagreement(
        place=row.answered.row.place,
        label=name_of(row.answered.label),
        outcome=row.grade.outcome.value,
        read=row.grade.answer,
        reference=row.answered.question.ground_truth,
        grader=row.grade.grader,
    )
