"""Rows on their way to a trainer: read, measured with the base's tokenizer and chat template, too long ones found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from malt.config.train import Stage
from malt.training.job import RoleJob

_Row = Mapping[str, Any]
ANSWERS: Mapping[Stage, tuple[str, ...]] = {"sft": ("completion",), "dpo": ("chosen", "rejected")}
_TOO_LONG = "longer than max_length"


class Measured(NamedTuple):
    """A stage's rows and how long they are."""

    rows: list[dict[str, Any]]
    """Those to train on: prompt and answers alone."""
    lengths: list[int]
    """Of all rows: tokens of the prompt with the longest answer."""
    tokens: int
    """Of those to train on, every text counted."""
    lost: dict[str, int]


def measure_rows(job: RoleJob, stage: Stage, tokenizer: Any) -> Measured:  # noqa: ANN401 - transformers is not typed
    """Read and measure a stage's rows. Nothing is refused here."""
    answers = ANSWERS[stage]
    limit = job.train.settings_of(stage).max_length
    kept, lengths, tokens = [], [], 0
    tables = (pq.read_table(path, columns=["prompt", *answers]) for path in job.files[stage].paths)
    for row in (row for table in tables for row in table.to_pylist()):
        counts = [_count_tokens(tokenizer, row["prompt"], row[answer]) for answer in answers]
        lengths.append(max(counts))
        if lengths[-1] <= limit:
            kept.append(row)
            tokens += sum(counts)
    lost = {_TOO_LONG: len(lengths) - len(kept)} if len(kept) < len(lengths) else {}
    return Measured(kept, lengths, tokens, lost)


def _count_tokens(tokenizer: Any, prompt: Sequence[_Row], answer: Sequence[_Row]) -> int:  # noqa: ANN401
    """Count the tokens of a conversation as the chat template writes it."""
    written = tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=True)
    return len(written["input_ids"])


def find_refusal(job: RoleJob, stage: Stage, found: Measured) -> str | None:
    """Say why rows are not trained: some would lose their end and may not be left out, or none is left; else None."""
    settings, lost, key = job.train.settings_of(stage), found.lost.get(_TOO_LONG, 0), f"train.{stage}"
    longer = f"{len(found.lengths)} {stage} rows are longer than {key}.max_length = {settings.max_length} tokens"
    if lost and settings.too_long == "refuse":
        longest = max(found.lengths)
        left_out = f'{key}.too_long = "drop" to leave them out'
        return f"{job.role}: {lost} of {longer} (the longest has {longest}); raise it, or set {left_out}"
    return None if found.rows else f"{job.role}: all {longer}; raise it"


def spread(lengths: Iterable[int]) -> dict[str, int]:
    """Return shortest, median and longest length."""
    ordered = sorted(lengths)
    return {"shortest": ordered[0], "median": ordered[len(ordered) // 2], "longest": ordered[-1]} if ordered else {}
