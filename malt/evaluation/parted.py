"""The questions on which systems part, with what each said: the data of the report's viewer, within bounds."""

from collections.abc import Mapping
from typing import Any

from malt.evaluation.sheet import Sheet
from malt.evaluation.summary import Measure

ALL_BYTES = 3_000_000
"""Of all questions in one page, estimated."""
MOST_CHARACTERS = 1_200
"""Kept of each text."""
TEXTS = ("generator", "verifier", "refiner")


def parted_questions(sheets: Mapping[str, Sheet], measure: Measure) -> list[dict[str, Any]]:
    """Return the questions that some system has right and another wrong, with all their chains; of many the first."""
    scores = {name: sheet.scores(measure) for name, sheet in sheets.items()}
    kept, size = [], 0
    for place, question_id in enumerate(next(iter(sheets.values())).questions):
        told = {name: float(own[place]) for name, own in scores.items() if own[place] == own[place]}
        if len(set(told.values())) < 2:
            continue
        entry = write_question(sheets, place, question_id, told)
        size += len(str(entry))
        if size > ALL_BYTES:
            break
        kept.append(entry)
    return kept


def write_question(
    sheets: Mapping[str, Sheet], place: int, question_id: str, told: Mapping[str, float]
) -> dict[str, Any]:
    """Return one question with every system's chains."""
    first = next(iter(sheets.values()))
    asked = first.rows[first.rows["question_id"] == question_id].iloc[0]
    return {
        "id": question_id,
        "question": cut(asked["question"]),
        "truth": cut(asked["ground_truth"]),
        "share": told,
        "chains": {name: list_chains(sheet, place) for name, sheet in sheets.items()},
    }


def list_chains(sheet: Sheet, place: int) -> list[dict[str, Any]]:
    """Return a system's chains to one question."""
    columns = {name: sheet.grid(name)[place].ravel() for name in (*TEXTS, "answer", "outcome", "generator_outcome")}
    return [{name: cut(values[chain]) for name, values in columns.items()} for chain in range(len(columns["outcome"]))]


def cut(text: str | None) -> str | None:
    """Shorten a text."""
    return text if text is None or len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
