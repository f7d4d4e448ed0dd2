"""Writing rows with any columns to one file, .jsonl or .parquet, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from malt.errors import InputError

Columns = Mapping[str, JsonValue]


def check_output(path: Path) -> None:
    """Make sure that rows can be written there. Raises `InputError`."""
    if path.suffix not in WRITERS:
        raise InputError(f"--out {path}: cannot tell its format; it must end in {' or '.join(WRITERS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


def write_rows(rows: Iterable[Columns], path: Path) -> None:
    """Write rows in order; an earlier file gives way once the new one is whole. Raises `InputError`."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        WRITERS[path.suffix](list(rows), unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_jsonl(rows: Sequence[Columns], path: Path) -> None:
    """Write one object a line."""
    from malt.datasets.rows.files import json_line

    with path.open("wb") as file:
        file.writelines(json_line(row) + b"\n" for row in rows)


def write_parquet(rows: Sequence[Columns], path: Path) -> None:
    """Write columns; a row without one has null there. Raises `InputError` where a column's values share no type."""
    import pyarrow as pa
    from pyarrow import parquet

    from malt.datasets.rows.files import writable

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([writable(row.get(name)) for row in rows])
        except pa.ArrowException as error:
            raise InputError(f"column {name!r} fits no Parquet type ({error}); write a .jsonl file instead") from error
    try:
        parquet.write_table(pa.table(columns), path)
    except pa.ArrowException as error:
        raise InputError(f"the rows fit no Parquet file ({error}); write a .jsonl file instead") from error


WRITERS: Mapping[str, Callable[[Sequence[Columns], Path], None]] = {".jsonl": write_jsonl, ".parquet": write_parquet}
