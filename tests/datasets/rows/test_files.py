"""Files of rows: the digest covers values only, and row groups are bounded in size."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.datasets.rows.files import JsonExamples, ParquetRows, RowsDigest, as_batch, example_lines, json_line
from malt.datasets.rows.tables import SftRow, schema_of

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("turns", schema_of(SftRow).field("prompt").type),
        ("lines", pa.list_(pa.string())),
        ("value", pa.float64()),
        ("label", pa.bool_()),
        ("count", pa.int64()),
    ]
)
COLUMNS = SCHEMA.names

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
turns = st.lists(st.fixed_dictionaries({"role": texts, "content": st.none() | texts}), max_size=3)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "question_id": texts,
            "turns": st.none() | turns,
            "lines": st.none() | st.lists(st.none() | texts, max_size=3),
            "value": st.none() | st.floats(0, 1),
            "label": st.none() | st.booleans(),
            "count": st.none() | st.integers(0, 10**12),
        }
    ),
    max_size=8,
)
Row = dict[str, object]


def digest_of(*batches: pa.RecordBatch) -> str:
    digest = RowsDigest(SCHEMA, COLUMNS)
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


def batch_of(some: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(some, schema=SCHEMA)


@given(rows, st.integers(0, 8))
def test_a_digest_does_not_depend_on_how_rows_are_cut_into_batches(some: list[Row], cut: int) -> None:
    whole = batch_of(some)
    assert digest_of(whole) == digest_of(batch_of(some[:cut]), batch_of(some[cut:]))
    assert digest_of(whole) == digest_of(
        whole.slice(0, cut), whole.slice(cut) if cut <= len(some) else whole.slice(0, 0)
    )


@given(rows, rows)
def test_different_rows_have_different_digests(some: list[Row], others: list[Row]) -> None:
    assert (digest_of(batch_of(some)) == digest_of(batch_of(others))) == (some == others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"question_id": "ab", "lines": ["c"]}, {"question_id": "a", "lines": ["bc"]}),
        ({"lines": ["a", "b"]}, {"lines": ["ab"]}),
        ({"lines": []}, {"lines": None}),
        ({"question_id": ""}, {"question_id": None}),
        ({"value": 0.0}, {"value": None}),
        ({"turns": [{"role": "a", "content": "b"}]}, {"turns": [{"role": "b", "content": "a"}]}),
    ],
)
def test_values_that_look_alike_end_to_end_differ(one: Row, other: Row) -> None:
    assert digest_of(batch_of([one])) != digest_of(batch_of([other]))


def test_a_digest_is_the_same_in_every_release() -> None:
    row: Row = {"question_id": "q", "turns": [{"role": "user", "content": "é"}], "lines": None, "value": 0.1}
    assert digest_of(batch_of([row])) == "32c0589f6cf2e30efd5181c7338b46c13966b467f349f74232e6d6f8b25f9101"


def test_a_column_left_out_does_not_count() -> None:
    one, other = RowsDigest(SCHEMA, ["question_id"]), RowsDigest(SCHEMA, ["question_id"])
    one.update(batch_of([{"question_id": "q", "value": 0.1}]))
    other.update(batch_of([{"question_id": "q", "value": 0.2}]))
    assert one.hexdigest() == other.hexdigest()


@given(some=rows)
def test_rows_read_back_have_the_digest_they_were_written_with(
    tmp_path_factory: pytest.TempPathFactory, some: list[Row]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    file = ParquetRows(path, SCHEMA)
    file.add(as_batch([*some], SCHEMA))
    assert file.close() == (len(some), digest_of(*pq.ParquetFile(path).iter_batches(batch_size=3)))
    assert pq.read_table(path).to_pylist() == some


def test_row_groups_are_bounded_in_bytes(tmp_path: Path) -> None:
    file = ParquetRows(tmp_path / "rows.parquet", SCHEMA)
    for _ in range(6):
        file.add(batch_of([{"question_id": f"{number:08}" * 1_000} for number in range(1_000)]))
    file.close()
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2_000] * 3


def test_an_empty_file_still_has_its_columns(tmp_path: Path) -> None:
    ParquetRows(tmp_path / "rows.parquet", SCHEMA).close()
    assert pq.read_schema(tmp_path / "rows.parquet").equals(SCHEMA)


def test_half_characters_are_replaced_wherever_they_stand(tmp_path: Path) -> None:
    file = ParquetRows(tmp_path / "rows.parquet", SCHEMA)
    empty: Row = dict.fromkeys(COLUMNS)
    row = {**empty, "question_id": "a\ud83d", "turns": [{"role": "user", "content": "\udc00b"}], "value": 0.5}
    file.add(as_batch([row], SCHEMA))
    file.close()
    (read,) = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert (read["question_id"], read["turns"][0]["content"], read["value"]) == ("a\ufffd", "\ufffdb", 0.5)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_examples_are_plain_json_with_their_number_in_front(tmp_path: Path, count: int) -> None:
    path = tmp_path / "generator_training.json"
    file = JsonExamples(path, {"model": "m"})
    file.add([json_line({"question": f"é{number}"}) for number in range(count)])
    assert file.close().rows == count
    parsed = json.loads(path.read_bytes())
    assert parsed["metadata"] == {"model": "m", "total_examples": count}
    assert parsed["examples"] == [{"question": f"é{number}"} for number in range(count)]
    assert [json.loads(line) for line in example_lines(path)] == parsed["examples"]
