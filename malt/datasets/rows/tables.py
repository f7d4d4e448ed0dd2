"""The files of a version and their schemas, declared once: writing, reading and the card go by these."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from malt.config.spec import PLAYERS, Role
from malt.questions.screening import SPLITS, Split

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

SFT = pa.schema(
    [
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("row_id", pa.string()),
        ("question_id", pa.string()),
        ("node_id", pa.string()),
        ("value", pa.float64()),
    ]
)
DPO = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("row_id", pa.string()),
        ("question_id", pa.string()),
        ("chosen_node_id", pa.string()),
        ("rejected_node_id", pa.string()),
        ("chosen_value", pa.float64()),
        ("rejected_value", pa.float64()),
        ("margin", pa.float64()),
        ("confidence", pa.float64()),
    ]
)
KTO = pa.schema(
    [
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("label", pa.bool_()),
        ("row_id", pa.string()),
        ("question_id", pa.string()),
        ("node_id", pa.string()),
        ("value", pa.float64()),
    ]
)
TRAJECTORIES = pa.schema(
    [
        ("question_id", pa.string()),
        ("node_id", pa.string()),
        ("role", pa.string()),
        ("model", pa.string()),
        ("text", pa.string()),
        ("prompt_length", pa.int64()),
        ("text_length", pa.int64()),
        ("reasoning", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("status", pa.string()),
        ("reward", pa.float64()),
        ("value", pa.float64()),
        ("value_low", pa.float64()),
        ("value_high", pa.float64()),
        ("label", pa.bool_()),
        ("known_leaves", pa.int64()),
        ("own_outcome", pa.string()),
        ("own_answer", pa.string()),
        ("outcome", pa.string()),
        ("grader", pa.string()),
        ("correctness_score", pa.float64()),
        ("reasoning_score", pa.float64()),
        ("explanation", pa.list_(pa.string())),
        ("key_matches", pa.list_(pa.string())),
        ("error", pa.string()),
        ("request_key", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("latency_s", pa.float64()),
        ("run", pa.string()),
    ]
)
QUESTIONS = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("ground_truth", pa.string()),
        ("reference", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("complete", pa.bool_()),
        ("split", pa.string()),
        ("excluded", pa.string()),
        ("excluded_by", pa.string()),
        ("metadata", pa.string()),
    ]
)
TRAJECTORIES_FILE, QUESTIONS_FILE = "trajectories.parquet", "questions.parquet"
KINDS: Mapping[str, pa.Schema] = {"sft": SFT, "dpo": DPO, "kto": KTO}


def role_file(kind: str, role: Role | str, split: Split = "train") -> str:
    """Name of a role's file of one kind, `sft`, `dpo` or `kto`, with the rows of one split."""
    return f"{kind}/{Role(role)}{'' if split == 'train' else f'.{split}'}.parquet"


def training_file(role: Role) -> str:
    """Name of the file with all of a role's scored examples."""
    return f"{role}_training.json"


class RoleFile(NamedTuple):
    """What is in a file of training rows."""

    kind: str
    role: Role
    split: Split

    @property
    def config(self) -> str:
        """The name under which `load_dataset` finds it, all splits together, and with which its rows' ids begin."""
        return f"{self.kind}-{self.role}"


ROLE_FILES: Mapping[str, RoleFile] = {
    role_file(kind, role, split): RoleFile(kind, role, split) for kind in KINDS for role in PLAYERS for split in SPLITS
}
"""Every file of training rows, by its path below the version's folder."""

SCHEMAS: Mapping[str, pa.Schema] = {
    **{path: KINDS[file.kind] for path, file in ROLE_FILES.items()},
    TRAJECTORIES_FILE: TRAJECTORIES,
    QUESTIONS_FILE: QUESTIONS,
}
"""Every parquet file of a version, by its path below the version's folder."""

MEASURED = frozenset({"prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "run"})
"""Columns that tell of the run, not of the content: the same completions had again differ here. In no row digest."""

QUESTION_COLUMNS = frozenset({"question_id", "question", "ground_truth", "reference", "choices", "metadata"})
"""What was asked, whatever became of it: the columns of the questions' own digest."""
