"""`answers.parquet`: one row a chain, its schema, and which columns are content."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from malt.datasets.rows.files import RowsDigest, RowsWritten, as_batch
from malt.errors import VersionError
from malt.evaluation.answers import Answer

if TYPE_CHECKING:
    import pandas as pd

ANSWERS_FILE = "answers.parquet"
ANSWERS = pa.schema(
    [
        ("question_id", pa.string()),
        ("system", pa.string()),
        ("kind", pa.string()),
        ("chain", pa.int64()),
        ("seed", pa.int64()),
        ("question", pa.string()),
        ("ground_truth", pa.string()),
        ("generator", pa.string()),
        ("verifier", pa.string()),
        ("refiner", pa.string()),
        ("generator_outcome", pa.string()),
        ("generator_answer", pa.string()),
        ("verdict", pa.bool_()),
        ("outcome", pa.string()),
        ("answer", pa.string()),
        ("generator_prompt_tokens", pa.int64()),
        ("generator_completion_tokens", pa.int64()),
        ("generator_cost_usd", pa.float64()),
        ("generator_latency_s", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("latency_s", pa.float64()),
    ]
)
MEASURED = frozenset(ANSWERS.names[ANSWERS.names.index("generator_prompt_tokens") :])
"""Columns that tell of the run, not of the content; in no digest."""
QUESTION = ("question_id", "question", "ground_truth")


def make_table(answers: Iterable[Answer]) -> pa.Table:
    """Turn answers into columns."""
    return pa.Table.from_batches([as_batch([asdict(answer) for answer in answers], ANSWERS)], ANSWERS)


def write_answers(table: pa.Table, path: Path) -> RowsWritten:
    """Write the file, and describe its rows."""
    pq.write_table(table, path, compression="zstd")
    return RowsWritten(table.num_rows, rows_digest(table))


def rows_digest(table: pa.Table) -> str:
    """Return the digest of the rows' content."""
    return digest_columns(table, [name for name in ANSWERS.names if name not in MEASURED])


def questions_digest(table: pa.Table) -> str:
    """Return the digest of what was asked, each question once, in order."""
    frame = make_frame(table.select(QUESTION)).drop_duplicates("question_id")
    return digest_columns(pa.Table.from_pandas(frame, table.select(QUESTION).schema, preserve_index=False), QUESTION)


def digest_columns(table: pa.Table, columns: Iterable[str]) -> str:
    """Return the digest of some columns' values."""
    taken = RowsDigest(table.schema, [*columns])
    for batch in table.combine_chunks().to_batches():
        taken.update(batch)
    return taken.hexdigest()


def read_answers(folder: Path) -> pa.Table:
    """Read a version's answers. Raises `VersionError`."""
    try:
        return pq.read_table(folder / ANSWERS_FILE, schema=ANSWERS)
    except (OSError, ValueError) as error:
        raise VersionError(f"{folder / ANSWERS_FILE} cannot be read ({error}); try: malt verify {folder}") from error


def make_frame(table: pa.Table) -> "pd.DataFrame":
    """Return a table as a data frame in which what is missing is None."""
    import pandas as pd

    columns = ((name, table.column(name)) for name in table.column_names)
    return pd.DataFrame({name: pd.Series(column.to_pylist(), dtype=dtype_of(column)) for name, column in columns})


def dtype_of(column: pa.ChunkedArray) -> str:
    """Return the dtype that keeps None apart from texts and numbers."""
    return "object" if column.null_count or not pa.types.is_primitive(column.type) else str(column.type)
