"""Files of a version and the types of their rows, shared by the code that writes, reads and describes them."""

from collections.abc import Mapping
from types import UnionType
from typing import Literal, NamedTuple, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

import pyarrow as pa

from malt.config.roles import PLAYERS, TRAJECTORY, Role
from malt.questions.screening import SPLITS, Split


class MessageRow(TypedDict):
    """One turn in the form that chat templates take."""

    role: str
    content: str


class SftRow(TypedDict):
    """Row in TRL's conversational prompt-completion format."""

    prompt: list[MessageRow]
    completion: list[MessageRow]
    row_id: str
    question_id: str
    node_id: str
    value: float


class DpoRow(TypedDict):
    """Row in TRL's conversational preference format."""

    prompt: list[MessageRow]
    chosen: list[MessageRow]
    rejected: list[MessageRow]
    row_id: str
    question_id: str
    chosen_node_id: str
    rejected_node_id: str
    chosen_value: float
    rejected_value: float
    margin: float
    confidence: float


class KtoRow(TypedDict):
    """Row in TRL's conversational unpaired preference format."""

    prompt: list[MessageRow]
    completion: list[MessageRow]
    label: bool
    row_id: str
    question_id: str
    node_id: str
    value: float


class TrajectoryRow(TypedDict):
    """One node. The grade's columns are empty where the node itself was not graded.

    `own_outcome` and `own_answer` are its diagnosis; `answer` is the grade's answer, or without a grade `own_answer`.
    `value_low` and `value_high` are the 95 % Wilson interval of the value over the node's known leaves; a leaf's value
    is its grade and no estimate, so both equal it. Lengths are in tokens, as `[dataset] tokenizer` counts them.
    """

    question_id: str
    node_id: str
    role: str
    model: str
    text: str
    prompt_length: int
    text_length: int
    reasoning: str | None
    answer: str | None
    finish_reason: str
    status: str
    reward: float | None
    value: float | None
    value_low: float | None
    value_high: float | None
    label: bool | None
    known_leaves: int
    own_outcome: str | None
    own_answer: str | None
    outcome: str | None
    grader: str | None
    correctness_score: float | None
    reasoning_score: float | None
    explanation: list[str] | None
    key_matches: list[str] | None
    error: str | None
    request_key: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    latency_s: float
    run: str


class QuestionRow(TypedDict):
    """One question, also if its tree is incomplete. `excluded` is the gate that drops all of its rows."""

    question_id: str
    question: str
    ground_truth: str
    reference: str
    choices: list[str]
    complete: bool
    split: Split
    excluded: str | None
    excluded_by: str | None
    metadata: str


class EvaluationRow(TypedDict):
    """The evaluation of one example in a `*_training.json`."""

    correctness_score: float
    reasoning_score: float
    explanation: list[str]
    key_matches: list[str]


class ScoredExample(TypedDict):
    """One example of a `*_training.json`: `solution` is the role's own text; the other texts are those above it."""

    question: str
    solution: str
    score: float
    evaluation: EvaluationRow
    generated_solution: NotRequired[str]
    verification: NotRequired[str]


TEXTS_ABOVE = ("generated_solution", *(part.writes for part in TRAJECTORY[1:]))
"""Keys of an example's texts above its own, from the root."""

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema_of(row: type) -> pa.Schema:
    """Return the Parquet schema of a row type; every column may hold null."""
    return pa.schema([(name, _arrow_type(kind)) for name, kind in get_type_hints(row).items()])


def _arrow_type(kind: object) -> pa.DataType:
    if is_typeddict(kind):
        return pa.struct(schema_of(kind))  # type: ignore[arg-type]  # the check narrows nothing
    match get_origin(kind), get_args(kind):
        case origin, (item,) if origin is list:
            return pa.list_(_arrow_type(item))
        case origin, (wrapped, _) if origin is UnionType:
            return _arrow_type(wrapped)
        case origin, _ if origin is Literal:
            return pa.string()
    return _ARROW[kind]  # type: ignore[index]  # one of the four types


TRAJECTORIES, QUESTIONS = schema_of(TrajectoryRow), schema_of(QuestionRow)
TRAJECTORIES_FILE, QUESTIONS_FILE = "trajectories.parquet", "questions.parquet"

Kind = Literal["sft", "dpo", "kto"]
KINDS: Mapping[Kind, pa.Schema] = {"sft": schema_of(SftRow), "dpo": schema_of(DpoRow), "kto": schema_of(KtoRow)}

TEXT_KINDS: tuple[Kind, ...] = ("sft", "kto")
"""Kinds of rows that hold one text, not two."""


class RoleFile(NamedTuple):
    """Kind, role and split of the rows in a file of training rows."""

    kind: Kind
    role: Role
    split: Split

    @property
    def config(self) -> str:
        """Config name of the file for `load_dataset`, the same for all splits; the ids of its rows begin with it."""
        return f"{self.kind}-{self.role}"


def role_file(kind: str, role: Role | str, split: Split = "train") -> str:
    """Return the path of a role's file of one kind (`sft`, `dpo` or `kto`) and one split."""
    return f"{kind}/{Role(role)}{'' if split == 'train' else f'.{split}'}.parquet"


def count_rows(rows: Mapping[str, int]) -> dict[Kind, int]:
    """Add up the training rows of a version's files by kind."""
    return {kind: sum(count for path, count in rows.items() if path.startswith(f"{kind}/")) for kind in KINDS}


def training_file(role: Role) -> str:
    """Return the name of the file with all of a role's scored examples."""
    return f"{role}_training.json"


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
"""Columns about the run, not the content: they differ when the same texts are requested again. In no row digest."""

QUESTION_COLUMNS = frozenset({"question_id", "question", "ground_truth", "reference", "choices", "metadata"})
"""Columns of the digest of the questions; they do not depend on the answers."""
