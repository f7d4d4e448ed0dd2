"""QuestionSource: where questions come from, and how their file is read."""

from typing import Literal

from pydantic import Field

from malt.config.base import Declared


class QuestionSource(Declared):
    """Where the questions come from and how to read them."""

    source: str = Field(min_length=1)
    """File with one question a row: .jsonl .json .csv .parquet; a path, URL, s3:// or hf://datasets/… address.

    A folder, or a path or address with `*` in it, means all such files there."""
    format: Literal["auto", "gsm8k", "math", "csqa", "plain"] = "auto"
    """How the reference answer is written in its column."""
    limit: int | None = Field(None, ge=1)
    """Take this many questions; all of them when empty."""
    shuffle_seed: int | None = None
    """Shuffle before the limit: the same seed and file give the same sample."""
    question: str | None = None
    """Column of the question; empty: `question`, else the benchmark's own name for it."""
    ground_truth: str | None = None
    """Column of the reference answer; empty: `ground_truth`, else the benchmark's own name for it."""
    id: str | None = None
    """Column of the question's id; empty: `id` where there is one, else derived from the content."""
    choices: str | None = None
    """Column of the choices; empty: `choices` where there is one."""
