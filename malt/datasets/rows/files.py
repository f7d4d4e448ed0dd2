"""Writers of row files, which stream rows in bounded memory, and the digest of a file's rows.

The digest of the rows is over their values: the file's bytes depend on the pyarrow that wrote them, the values do not.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from malt.canonical_json import digest
from malt.datasets.rows.tables import MEASURED
from malt.sanitize import replace_lone_surrogates

_ROW_GROUP_BYTES = 8 * 2**20
"""Bytes of columns held in memory before they are written; the size of a row group, uncompressed."""

_EXAMPLES_END = b"]}\n"
"""The last line of a `*_training.json`."""
_MOST_DIGITS = 12
"""Width reserved for the number of examples, which precedes them but is known only after them."""
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class RowsWritten(NamedTuple):
    """Number of rows written to a file, and the digest of their values."""

    rows: int
    sha256: str


class RowsDigest:
    """SHA-256 over the values of rows, fed in batches of any size.

    Every column becomes a few streams of bytes, each hashed separately: which values are not null (`?`), the length of
    each value (`#`), and the values one after another. The digest is taken over the streams' hashes by name.
    """

    def __init__(self, schema: pa.Schema, columns: Collection[str]) -> None:
        self.columns = columns
        self.rows = 0
        self._streams: dict[str, hashlib._Hash] = {}
        self.update(pa.RecordBatch.from_pylist([], schema=schema))

    def update(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for name in batch.schema.names:
            if name in self.columns:
                self._take(name, batch.column(name))

    def hexdigest(self) -> str:
        return digest({"rows": self.rows, **{name: stream.hexdigest() for name, stream in self._streams.items()}})

    def _take(self, name: str, column: pa.Array) -> None:
        self._feed(f"{name}?", column.is_valid().cast(pa.uint8()))
        present = column.drop_null()
        if pa.types.is_struct(column.type):
            for field, values in zip(column.type, present.flatten(), strict=True):
                self._take(f"{name}.{field.name}", values)
        elif pa.types.is_list(column.type):
            self._feed(f"{name}#", present.value_lengths().cast(pa.int64()))
            self._take(f"{name}[]", present.flatten())
        elif pa.types.is_string(column.type):
            self._feed(f"{name}#", pc.binary_length(present).cast(pa.int64()))
            self._stream(name).update(_text_bytes(present))
        else:
            self._feed(name, present.cast(pa.uint8()) if pa.types.is_boolean(column.type) else present)

    def _feed(self, name: str, numbers: pa.Array) -> None:
        self._stream(name).update(numbers.to_numpy(zero_copy_only=False))

    def _stream(self, name: str) -> "hashlib._Hash":
        return self._streams.setdefault(name, hashlib.sha256())


def _text_bytes(texts: pa.Array) -> memoryview:
    """Return the concatenated texts of an array without nulls, as they lie in memory."""
    wide = texts.cast(pa.large_binary())
    _, offsets, data = wide.buffers()
    if not len(wide) or data is None:
        return memoryview(b"")
    bounds = memoryview(offsets).cast("q")
    return memoryview(data)[bounds[wide.offset] : bounds[wide.offset + len(wide)]]


def digested_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name not in MEASURED]


class ParquetRows:
    """Writer of a Parquet file whose row groups are bounded in bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._digest = RowsDigest(schema, digested_columns(schema))
        # Readers find one question's row groups by statistics; statistics of texts would only make the footer grow.
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", write_statistics=["question_id"])
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows; they are on disk once the file is closed."""
        self._digest.update(rows)
        self._batches.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= _ROW_GROUP_BYTES:
            self._write()

    def close(self) -> RowsWritten:
        """Write the rows still in memory and finish the file."""
        self._write()
        self._writer.close()
        return RowsWritten(self._digest.rows, self._digest.hexdigest())

    def discard(self) -> None:
        self._writer.close()

    def _write(self) -> None:
        table = pa.Table.from_batches(self._batches, self.schema)
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._batches, self._bytes = [], 0


class JsonExamples:
    """Writer of a `*_training.json`: a first line with `metadata`, then one example a line.

    The first line holds the number of examples, so it is written again at the end, at the same length.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._metadata = metadata
        self._file = path.open("wb")
        self._sha256, self._rows = hashlib.sha256(), 0
        self._file.write(examples_head(metadata, 0))

    def add(self, rows: Sequence[bytes]) -> None:
        """Add examples, a line each; they are on disk once the file is closed."""
        if rows:
            self._file.write((b",\n" if self._rows else b"\n") + b",\n".join(rows))
            self._sha256.update(b"\n".join([*rows, b""]))
            self._rows += len(rows)

    def close(self) -> RowsWritten:
        """Finish the file: close the list, and write the number of examples into the first line."""
        self._file.write(b"\n]}\n")
        self._file.seek(0)
        self._file.write(examples_head(self._metadata, self._rows))
        self._file.close()
        return RowsWritten(self._rows, self._sha256.hexdigest())

    def discard(self) -> None:
        self._file.close()


def examples_head(metadata: Mapping[str, str], rows: int) -> bytes:
    """Return the first line of a `*_training.json`, without its line break."""
    written = json_line({**metadata, "total_examples": rows})
    return b'{"metadata": %b, "examples": [' % written + b" " * (_MOST_DIGITS - len(str(rows)))


def example_lines(path: Path) -> Iterator[bytes]:
    """Yield the examples of a `*_training.json`, one JSON text each, as they were written.

    Raises `ValueError` for a line after the first that publishing does not write: a JSON parser may read more from it.
    """
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            if line.startswith(b"{"):
                yield line.rstrip(b",\n")
            elif line != _EXAMPLES_END:
                raise ValueError("it holds a line that is no example")


def json_line(row: Mapping[str, object]) -> bytes:
    """Return one object as a line of JSON, keys in their given order."""
    text = _JSON.encode(row)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return replace_lone_surrogates(text).encode()


def as_batch(rows: list[Mapping[str, object]], schema: pa.Schema) -> pa.RecordBatch:
    """Convert rows, which have a value for every column, to columns."""
    try:
        values = zip(*map(itemgetter(*schema.names), rows), strict=True) if rows else [()] * len(schema)
        columns = [_as_column(column, kind) for column, kind in zip(values, schema.types, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=schema)
    except UnicodeEncodeError:
        return pa.RecordBatch.from_pylist([clean_texts(row) for row in rows], schema=schema)


def _as_column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Convert values to a column; a list that several rows share, such as siblings' prompt, is converted once."""
    distinct = {id(value): value for value in values} if pa.types.is_list(kind) else {}
    if not 0 < len(distinct) <= len(values) // 2:
        return pa.array(values, kind)
    places = {identity: place for place, identity in enumerate(distinct)}
    return pa.array(distinct.values(), kind, size=len(distinct)).take(pa.array([places[id(value)] for value in values]))


def clean_texts(value: object) -> object:
    match value:
        case str():
            return replace_lone_surrogates(value)
        case list():
            return [clean_texts(item) for item in value]
        case dict():
            return {name: clean_texts(item) for name, item in value.items()}
    return value
