"""QuestionSource: a file of questions, and how to read it."""

from typing import Literal

from pydantic import Field

from malt.config.base import Declared


class QuestionSource(Declared):
    """Source of the questions, and how to read it."""

    source: str = Field(min_length=1)
    """File with one question a row: .jsonl .json .csv .parquet; a path, URL, s3:// or hf://datasets/… address.

    A folder, or a path or address with `*` in it, means all such files there."""
    format: Literal["auto", "gsm8k", "math", "csqa", "plain"] = "auto"
    """Format of the reference answer in its column; `auto` recognises it in each row."""
    limit: int | None = Field(None, ge=1)
    """Number of questions to take; empty: all."""
    shuffle_seed: int | None = None
    """Seed to shuffle with before the limit: equal seed and file give an equal sample. Empty: no shuffle."""
    question: str | None = None
    """Column of the question; empty: `question`, else the benchmark's own name for it."""
    ground_truth: str | None = None
    """Column of the reference answer; empty: `ground_truth`, else the benchmark's own name for it."""
    id: str | None = None
    """Column of the question's id; empty: `id` if that column exists, else an id derived from the content."""
    choices: str | None = None
    """Column of the choices; empty: `choices` if that column exists."""
