"""Question, and reading question files: columns, ids, and how each benchmark writes its reference answer."""

from pydantic import BaseModel, ConfigDict, JsonValue


class Question(BaseModel):
    """One question and its reference answer. The reference is for graders alone; no trained role ever sees it."""

    model_config = ConfigDict(frozen=True)

    question_id: str
    question: str
    """The full text asked, with its lettered choices where there are any."""
    ground_truth: str
    choices: tuple[str, ...] = ()
    """Texts of the choices, in the order of their letters A, B, C, …"""
    metadata: dict[str, JsonValue] = {}
    """The row's other columns."""
