"""A file's rows as 64-bit hashes of their id, their values, their texts and the rest.

A row takes 36 bytes whatever its texts, so that files larger than memory can be joined. Two rows that differ have the
same hash once in 2^64.
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

_BATCH_ROWS = 10_000

_VALUES = frozenset({"value", "label", "reward", "chosen_value", "rejected_value", "margin"})
"""Columns that say what a row is worth."""
_TEXTS = frozenset({"text", "prompt", "completion", "chosen", "rejected", "question", "ground_truth", "choices"})
"""Columns that a reader of the row sees."""

_Hashes = NDArray[np.uint64]
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""Any odd number with its bits well spread."""


class ColumnGroups(NamedTuple):
    """A file's columns by what a difference in them means."""

    values: tuple[str, ...]
    texts: tuple[str, ...]
    rest: tuple[str, ...]


def group_columns(names: Iterable[str]) -> ColumnGroups:
    """Sort columns by what a difference in them means."""
    named = tuple(names)
    return ColumnGroups(
        values=tuple(name for name in named if name in _VALUES),
        texts=tuple(name for name in named if name in _TEXTS),
        rest=tuple(name for name in named if name not in _VALUES | _TEXTS),
    )


def hash_rows(path: Path, names: Collection[str], question_numbers: dict[str, int]) -> pd.DataFrame:
    """Return a hash a row and column group, the row's `key`, and its `question` by number; new ones get the next."""
    columns = group_columns(names)
    frames = [
        pd.DataFrame(
            {
                "key": _hash_values(_row_ids(batch)),
                "question": number_texts(batch.column("question_id"), question_numbers),
                **{group: hash_columns(batch, part) for group, part in columns._asdict().items()},
            }
        )
        for batch in _read_batches(path, names)
    ]
    return pd.concat(frames or [empty_hashes()], ignore_index=True).drop_duplicates("key")


def empty_hashes() -> pd.DataFrame:
    types = {"key": np.uint64, "question": np.int64, **dict.fromkeys(ColumnGroups._fields, np.uint64)}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})


def rows_by_key(path: Path, names: Collection[str], keys: "pd.Series[int]") -> Mapping[int, dict[str, Any]]:
    """Read the rows with these keys, each with its id as `row_id`."""
    wanted, found = pd.Index(keys), dict[int, dict[str, Any]]()
    for batch in _read_batches(path, names) if len(wanted) else ():
        ids = _row_ids(batch)
        hashes = _hash_values(ids)
        places = np.flatnonzero(wanted.get_indexer(pd.Index(hashes)) != -1)
        rows = batch.take(pa.array(places)).to_pylist()
        for place, row in zip(places, rows, strict=True):
            found[int(hashes[place])] = {**row, "row_id": ids[int(place)].as_py()}
        if len(found) == len(wanted):
            break
    return found


def _read_batches(path: Path, names: Collection[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as parquet:
        yield from parquet.iter_batches(_BATCH_ROWS, columns=list(names))


def _row_ids(batch: pa.RecordBatch) -> pa.Array:
    """Name the rows: by their own id, by question and node, or by question."""
    if "row_id" in batch.schema.names:
        return batch.column("row_id")
    if "node_id" in batch.schema.names:
        return pc.binary_join_element_wise(batch.column("question_id"), batch.column("node_id"), "/")
    return batch.column("question_id")


def number_texts(texts: pa.Array, numbers: dict[str, int]) -> NDArray[np.int64]:
    """Replace texts by their numbers; a new text gets the next one."""
    encoded = texts.dictionary_encode()
    known = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array(known, dtype=np.int64)[encoded.indices.to_numpy()]
    return found


def hash_columns(batch: pa.RecordBatch, names: Iterable[str]) -> _Hashes:
    """Hash some columns of every row into one number."""
    together = np.zeros(batch.num_rows, dtype=np.uint64)
    for name in names:
        column = batch.column(name)
        for part in (_hash_values(_flatten(column)), _hash_values(_list_sizes(column))):
            together = together * _MIX + part
    return together


def _flatten(column: pa.Array) -> pa.Array:
    """Write a list of texts or of messages as one text."""
    if not pa.types.is_list(column.type):
        return column
    items = column.values
    if pa.types.is_struct(items.type):
        items = pc.binary_join_element_wise(*(items.field(field.name) for field in items.type), "\x1e")
    return pc.binary_join(pa.ListArray.from_arrays(column.offsets, items), "\x1f")


def _list_sizes(column: pa.Array) -> pa.Array:
    """Return what `_flatten` loses: which values are there, and how many items a list has."""
    if pa.types.is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), -1)
    return column.is_valid()


def _hash_values(column: pa.Array) -> _Hashes:
    if pa.types.is_string(column.type):
        values = pc.fill_null(column, "").to_numpy(zero_copy_only=False).astype(object)
    else:
        values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return np.asarray(pd.util.hash_array(values, categorize=False), dtype=np.uint64)
