"""Row, and reading a file or address into rows: .jsonl .json .csv .parquet, checked, as plain JSON values.

What the columns mean is left to `malt.questions.question`.
"""

import csv
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from glob import glob
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import JsonValue

from malt.errors import QuestionError
from malt.files import MIB, read_regular_file
from malt.text import list_first, shorten

T = TypeVar("T")

MOST_BYTES = 1024 * MIB
"""Largest size of one file, also unpacked."""
_MOST_ROWS = 10_000_000
_UNPACKED_FREELY, _MOST_RATIO = 64 * MIB, 100
"""Size that any file may unpack to; beyond it, the largest ratio to the packed size: text reaches about 10."""
_PARQUET_BATCH = 64
"""Rows read at a time; few, since each may be long."""
_SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf")


class Row(NamedTuple):
    """One row of a question file, as JSON values."""

    place: str
    """`file:line`, or `file, row n` where the format has no lines."""
    values: Mapping[str, JsonValue]


def read_rows(source: str, key: str = "") -> Iterator[Row]:
    """Read a .jsonl, .json, .csv (each also .gz) or .parquet file from a path or any address fsspec knows.

    A folder, or a path or address with `*` in it, means all such files there, in the order of their names.
    Raises `QuestionError`; where a whole file is at fault, it begins with `key`, the config key that names the file.
    """
    try:
        return _bounded(chain.from_iterable([_rows(file) for file in _files(source)]), source)
    except _FileError as error:
        raise QuestionError(f"{key} = {error}" if key else str(error)) from error.__cause__
    except (OSError, ValueError) as error:  # a name too long or with a NUL, an incomplete address
        raise QuestionError(
            f"{key or 'questions'} = {excerpt(strip_secrets(source))}: cannot be used: {error}"
        ) from error


def _bounded(rows: Iterator[Row], source: str) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number == _MOST_ROWS:
            raise QuestionError(f"{strip_secrets(source)}: more than {_MOST_ROWS:,} rows; split it")
        yield row


class _FileError(QuestionError):
    """A file that cannot be read or has no known format."""


def _files(source: str) -> list[str]:
    if source.startswith("file://") and not urlsplit(source).query:
        source = url2pathname(urlsplit(source).path)
    if "://" in source:
        return _match_addresses(source) if "*" in source else [source]
    path = Path(source).expanduser()
    if not (path.is_dir() or "*" in source):
        return [source]
    found = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if path.is_dir():
        found = [str(each) for each in sorted(path.iterdir()) if _suffix(each.name) in {".parquet", *_TEXT_READERS}]
    if not found:
        raise _FileError(f"{source}: no question file there (looked in {Path.cwd()}); they end in {_ENDINGS}")
    return found


def _match_addresses(source: str) -> list[str]:
    found = _ask(source, lambda files, path: [files.unstrip_protocol(each) for each in sorted(files.glob(path))])
    if not found:
        raise _FileError(f"{strip_secrets(source)}: no file matches; check the address")
    return found


def _suffix(name: str) -> str:
    """Return the ending that tells a file's format, ignoring .gz."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def _rows(source: str) -> Iterator[Row]:
    name = strip_secrets(source)
    path = urlsplit(source).path if source.startswith(("http://", "https://")) else source
    packed, suffix = path.lower().endswith(".gz"), _suffix(path)
    if suffix == ".parquet" and not packed:
        return _parquet_rows(_read_bytes(source), name)
    if suffix not in _TEXT_READERS:
        raise _FileError(f"{name}: cannot tell its format; it must end in {_ENDINGS}")
    data = _read_bytes(source)
    return _TEXT_READERS[suffix](_decode(_unpack(data, name) if packed else data, name), name)


def _read_bytes(source: str) -> bytes:
    if "://" in source:
        return _fetch(source)
    try:
        return read_regular_file(Path(source).expanduser(), MOST_BYTES)
    except FileNotFoundError:
        raise _FileError(f"{source}: no such file (looked in {Path.cwd()}); check the path") from None
    except OSError as error:
        raise _FileError(f"{source}: cannot be read: {error.strerror}") from error


def _fetch(address: str) -> bytes:
    def fetch(files: Any, path: str) -> bytes:  # noqa: ANN401 - fsspec has no types
        with files.open(path, "rb") as file:
            data: bytes = file.read(MOST_BYTES + 1)
            return data

    data = _ask(address, fetch)
    if len(data) > MOST_BYTES:
        raise _FileError(f"{strip_secrets(address)}: it is larger than {MOST_BYTES // MIB:,} MiB; split it")
    return data


def _ask(address: str, ask: Callable[[Any, str], T]) -> T:
    """Call `ask` with an fsspec file system and a path; any error of the service's library becomes a `_FileError`."""
    import fsspec

    scheme, name = address.partition("://")[0].lower(), strip_secrets(address)
    if scheme not in _SCHEMES:
        raise _FileError(f"{name}: addresses begin with {', '.join(_SCHEMES)}; not with {scheme}")
    options = {"client_kwargs": {"trust_env": True}} if address.startswith(("http://", "https://")) else {}
    try:
        return ask(*fsspec.core.url_to_fs(address, **options))
    except ImportError as error:
        raise _FileError(f"{name}: a package is missing: {error}") from error
    except Exception as error:
        raise _FileError(f"{name}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    # over HTTP fsspec reports every failure as FileNotFoundError
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    if isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404:
        return "not found there; check the address"
    reason = strip_secrets(f"{type(cause).__name__}: {cause}")
    return f"cannot be fetched: {reason}; check address and access"


_SECRETS_IN_URL = re.compile(r"""([a-z][a-z0-9+.-]*://)(?:[^/\s@]*@)?([^\s?'"]*)(?:\?[^\s'"]*)?""")


def strip_secrets(text: str) -> str:
    """Cut user, password and query out of the addresses in a text, since errors may be logged."""
    return _SECRETS_IN_URL.sub(r"\1\2", text)


def _unpack(data: bytes, name: str) -> bytes:
    most = _most_unpacked(data)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise QuestionError(f"{name}: not a whole gzip file: {error}; fetch or pack it again") from error
    if len(unpacked) > most:
        raise QuestionError(f"{name}: it unpacks to more than {most // MIB:,} MiB; unpack and look at it, or split it")
    return unpacked


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = "it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise QuestionError(f"{name}:{line}: not UTF-8 ({found}); save the file as UTF-8") from error


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise QuestionError(
                    f"{place}: not JSON ({error}): {excerpt(line)}; a .jsonl file has one JSON object a line"
                ) from error
            yield _row(place, value)


def _json_rows(text: str, name: str) -> Iterator[Row]:
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        hint = "one object a line belongs in a .jsonl file" if error.msg == "Extra data" else "fix it there"
        raise QuestionError(f"{name}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{name}: not JSON that can be read: {error}") from error
    if isinstance(rows, dict):  # as MATH is published: one question a file
        yield _row(name, rows)
        return
    if not isinstance(rows, list):
        raise QuestionError(f"{name}: holds {excerpt(rows)}; a .json file must be a list of objects, or one object")
    for number, value in enumerate(rows, 1):
        yield _row(f"{name}, row {number}", value)


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # Python's default, 131,072 characters, is too few for long texts
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    place = f"{name}:1"
    try:
        header = _csv_header(place, next(reader, []))
        place = f"{name}:{reader.line_num + 1}"
        for cells in reader:
            if any(cells):
                yield _csv_row(place, header, cells)
            place = f"{name}:{reader.line_num + 1}"
    except csv.Error as error:
        hint = "quote fields that hold commas, quotes or newlines"
        raise QuestionError(f"{place}: broken CSV ({error}); {hint}") from error


def _csv_header(place: str, cells: list[str]) -> list[str]:
    header = _drop_empty_end(cells)
    if len(set(header)) < len(header):
        raise QuestionError(f"{place}: two columns have the same name: {join_names(header)}; rename one")
    return header


def _drop_empty_end(cells: list[str], least: int = 0) -> list[str]:
    """Drop the empty columns that spreadsheets write at the end."""
    while len(cells) > least and not cells[-1]:
        cells = cells[:-1]
    return cells


def _csv_row(place: str, header: Sequence[str], cells: list[str]) -> Row:
    cells = _drop_empty_end(cells, len(header))
    if len(cells) != len(header):
        raise QuestionError(
            f"{place}: {len(cells)} fields under {len(header)} columns ({join_names(header)}); quote fields with commas"
        )
    return _row(place, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _parquet_rows(data: bytes, name: str) -> Iterator[Row]:
    import pyarrow.parquet

    unpacked, numbers = 0, count(1)
    try:
        for batch in _parquet_batches(data):
            unpacked += sum(map(_written_out, batch.columns))
            if unpacked > MOST_BYTES:
                raise QuestionError(f"{name}: it unpacks to more than {MOST_BYTES // MIB:,} MiB; split it")
            for values in _plain_columns(batch).to_pylist():
                yield _row(f"{name}, row {next(numbers)}", values)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        raise QuestionError(f"{name}: not a Parquet file that can be read: {excerpt(str(error))}") from error


def _most_unpacked(data: bytes) -> int:
    """Return the size in bytes that a file may unpack to."""
    return min(MOST_BYTES, max(_UNPACKED_FREELY, _MOST_RATIO * len(data)))


def _parquet_batches(data: bytes) -> Iterator[Any]:
    """Yield a few rows at a time, texts dictionary-encoded: a few bytes may stand for a long text in every row."""
    import pyarrow.parquet

    source = pyarrow.BufferReader(data)
    metadata = pyarrow.parquet.read_metadata(source)
    places = range(metadata.num_columns)
    chunks = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups) for place in places]
    _check_sizes(chunks, _most_unpacked(data))
    leaves = [metadata.schema.column(place) for place in places]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    for batch in pyarrow.parquet.ParquetFile(source, read_dictionary=texts).iter_batches():
        yield from (batch.slice(start, _PARQUET_BATCH) for start in range(0, len(batch), _PARQUET_BATCH))


def _check_sizes(chunks: Sequence[Any], most: int) -> None:
    if max((chunk.num_values for chunk in chunks), default=0) > MOST_BYTES // 8:
        raise ValueError(f"a column has more than {MOST_BYTES // 8:,} values in a row group; write smaller ones")
    if sum(chunk.total_uncompressed_size for chunk in chunks) > most:
        raise ValueError(f"it unpacks to more than {most // MIB:,} MiB; split it, or compress it less")


def _written_out(column: Any) -> int:  # noqa: ANN401 - pyarrow has no types
    """Estimate the bytes that a column takes once its dictionaries are decoded."""
    from pyarrow import compute, types

    parts: Sequence[Any] = ()
    size: int = 8 * len(column)
    if types.is_dictionary(column.type):
        used = column.indices.value_counts()
        lengths = compute.binary_length(column.dictionary.take(used.field("values")))
        size += compute.sum(compute.multiply(lengths, used.field("counts"))).as_py() or 0
    elif types.is_struct(column.type):
        parts = column.flatten()
    elif types.is_fixed_size_list(column.type):
        parts = [column.flatten()]
    elif types.is_nested(column.type):
        first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
        parts = [column.values.slice(first, last - first)]
    else:
        size += column.nbytes
    return size + sum(map(_written_out, parts))


def _plain_columns(batch: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Decode dictionaries, and convert 32-bit floats by their shortest text: 0.1, not 0.10000000149011612."""
    import pyarrow

    for place, field in enumerate(batch.schema):
        column = batch.column(place)
        if pyarrow.types.is_dictionary(field.type):
            batch = batch.set_column(place, field.name, column.dictionary_decode())
        elif field.type in (pyarrow.float16(), pyarrow.float32()):
            written = column.cast(pyarrow.float32()).cast(pyarrow.string())
            batch = batch.set_column(place, field.name, written.cast(pyarrow.float64()))
    return batch


def _row(place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise QuestionError(f'{place}: {excerpt(value)} is not an object with columns; write {{"question": …}}')
    try:
        return Row(place, {_storable(name): _json_value(cell) for name, cell in value.items()})
    except ValueError as error:
        raise QuestionError(f"{place}: {error}; fix the row") from error


_MOST_NESTED = 100
"""Levels of nested lists and objects in a cell; checking and writing them recurses once for each."""


def _json_value(value: object, depth: int = 0) -> JsonValue:
    """Return a cell as JSON: NaN, infinity and binary become null, dates ISO text, other types their text.

    Raises `ValueError` for what cannot be stored.
    """
    if depth > _MOST_NESTED:
        raise ValueError(f"a column holds lists or objects more than {_MOST_NESTED} levels deep")
    match value:
        case str():
            return _storable(value)
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_json_value(item, depth + 1) for item in value]
        case dict():
            return {_storable(str(name)): _json_value(item, depth + 1) for name, item in value.items()}
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return None
    return str(value)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("text holds a NUL character, which no UTF-8 file or database can hold")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):x}"
        raise ValueError(f"text holds a lone surrogate ({code}), which no UTF-8 file or database can hold") from error
    return text


def excerpt(value: object) -> str:
    """Return the beginning of a value for an error message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    short = shorten(text, 80)
    return repr(short) if isinstance(value, str) else short


def join_names(columns: Collection[str]) -> str:
    """Join column names for an error message, at most 20 of them."""
    return list_first([excerpt(name)[1:-1] for name in columns], 20) or "none"


_TEXT_READERS: Mapping[str, Callable[[str, str], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
}
_ENDINGS = ".jsonl, .json, .csv (each also with .gz) or .parquet"
