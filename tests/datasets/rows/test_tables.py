"""A version's files have the columns and types of their row types."""

from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from malt.datasets.rows.tables import (
    ROLE_FILES,
    SCHEMAS,
    DpoRow,
    KtoRow,
    QuestionRow,
    SftRow,
    TrajectoryRow,
    schema_of,
)
from malt.datasets.version.dataset_version import DatasetVersion
from tests.published import publish_questions

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROW_TYPES = {"sft": SftRow, "dpo": DpoRow, "kto": KtoRow, "trajectories": TrajectoryRow, "questions": QuestionRow}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return publish_questions(["q1"], tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("file", SCHEMAS)
def test_a_published_file_has_the_columns_and_types_of_its_rows(file: str, version: DatasetVersion) -> None:
    row_type = ROW_TYPES[ROLE_FILES[file].kind if file in ROLE_FILES else Path(file).stem]
    assert pq.read_schema(version.path / file).names == list(get_type_hints(row_type))
    assert pq.read_schema(version.path / file).equals(schema_of(row_type))


@pytest.mark.parametrize(
    ("row_type", "column", "expected"),
    [
        (SftRow, "prompt", TURNS),
        (DpoRow, "margin", pa.float64()),
        (KtoRow, "label", pa.bool_()),
        (TrajectoryRow, "prompt_tokens", pa.int64()),
        (TrajectoryRow, "value", pa.float64()),
        (TrajectoryRow, "explanation", pa.list_(pa.string())),
        (QuestionRow, "split", pa.string()),
        (QuestionRow, "choices", pa.list_(pa.string())),
    ],
)
def test_a_column_has_the_parquet_type_of_its_python_type(row_type: type, column: str, expected: pa.DataType) -> None:
    assert schema_of(row_type).field(column).type == expected
