"""Marks: a file's rows as 64-bit hashes of their id, their values, their texts and the rest.

A row takes 36 bytes whatever its texts, so that files larger than memory can be joined. Two rows that differ have the
same mark once in 2^64.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

BATCH_ROWS = 10_000

VALUES = frozenset({"value", "label", "reward", "chosen_value", "rejected_value", "margin"})
"""Columns that say what a row is worth."""
TEXTS = frozenset({"text", "prompt", "completion", "chosen", "rejected", "question", "ground_truth", "choices"})
"""Columns that a reader of the row sees."""

Hashes = NDArray[np.uint64]
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Any odd number with its bits well spread."""


class Columns(NamedTuple):
    """A file's columns by what a difference in them means."""

    values: tuple[str, ...]
    texts: tuple[str, ...]
    rest: tuple[str, ...]


def by_meaning(names: Iterable[str]) -> Columns:
    """Sort columns by what a difference in them means."""
    named = tuple(names)
    return Columns(
        values=tuple(name for name in named if name in VALUES),
        texts=tuple(name for name in named if name in TEXTS),
        rest=tuple(name for name in named if name not in VALUES | TEXTS),
    )


def mark_rows(path: Path, names: Collection[str], question_numbers: dict[str, int]) -> pd.DataFrame:
    """Return a mark a row and column group, the row's `key`, and its `question` by number; new ones get the next."""
    columns = by_meaning(names)
    frames = [
        pd.DataFrame(
            {
                "key": hashed(ids_of(batch)),
                "question": numbered(batch.column("question_id"), question_numbers),
                **{group: hashed_together(batch, part) for group, part in columns._asdict().items()},
            }
        )
        for batch in batches(path, names)
    ]
    return pd.concat(frames or [no_marks()], ignore_index=True).drop_duplicates("key")


def no_marks() -> pd.DataFrame:
    """Return the marks of a file without rows."""
    types = {"key": np.uint64, "question": np.int64, **dict.fromkeys(Columns._fields, np.uint64)}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})


def rows_by_key(path: Path, names: Collection[str], keys: "pd.Series[int]") -> Mapping[int, dict[str, Any]]:
    """Read the rows with these keys, each with its id as `row_id`."""
    wanted, found = pd.Index(keys), dict[int, dict[str, Any]]()
    for batch in batches(path, names) if len(wanted) else ():
        ids = ids_of(batch)
        hashes = hashed(ids)
        places = np.flatnonzero(wanted.get_indexer(pd.Index(hashes)) != -1)
        rows = batch.take(pa.array(places)).to_pylist()
        for place, row in zip(places, rows, strict=True):
            found[int(hashes[place])] = {**row, "row_id": ids[int(place)].as_py()}
        if len(found) == len(wanted):
            break
    return found


def batches(path: Path, names: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Read some columns of a parquet file, a batch at a time."""
    with pq.ParquetFile(path) as parquet:
        yield from parquet.iter_batches(BATCH_ROWS, columns=list(names))


def ids_of(batch: pa.RecordBatch) -> pa.Array:
    """Name the rows: by their own id, by question and node, or by question."""
    if "row_id" in batch.schema.names:
        return batch.column("row_id")
    if "node_id" in batch.schema.names:
        return pc.binary_join_element_wise(batch.column("question_id"), batch.column("node_id"), "/")
    return batch.column("question_id")


def numbered(texts: pa.Array, numbers: dict[str, int]) -> NDArray[np.int64]:
    """Replace texts by their numbers; a new text gets the next one."""
    encoded = texts.dictionary_encode()
    known = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array(known, dtype=np.int64)[encoded.indices.to_numpy()]
    return found


def hashed_together(batch: pa.RecordBatch, names: Iterable[str]) -> Hashes:
    """Hash some columns of every row into one number."""
    together = np.zeros(batch.num_rows, dtype=np.uint64)
    for name in names:
        column = batch.column(name)
        for part in (hashed(flat(column)), hashed(sizes(column))):
            together = together * MIX + part
    return together


def flat(column: pa.Array) -> pa.Array:
    """Write a list of texts or of messages as one text."""
    if not pa.types.is_list(column.type):
        return column
    items = column.values
    if pa.types.is_struct(items.type):
        items = pc.binary_join_element_wise(*(items.field(field.name) for field in items.type), "\x1e")
    return pc.binary_join(pa.ListArray.from_arrays(column.offsets, items), "\x1f")


def sizes(column: pa.Array) -> pa.Array:
    """Tell what `flat` does not: which values are there, and how many items a list has."""
    if pa.types.is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), -1)
    return column.is_valid()


def hashed(column: pa.Array) -> Hashes:
    """Hash every value."""
    if pa.types.is_string(column.type):
        values = pc.fill_null(column, "").to_numpy(zero_copy_only=False).astype(object)
    else:
        values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return np.asarray(pd.util.hash_array(values, categorize=False), dtype=np.uint64)
