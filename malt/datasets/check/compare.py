"""Comparison of two versions: inputs that differ, and rows that were added, removed or changed, by question.

Rows are joined by id. Only 64-bit hashes of id, values, texts and the rest are held, 36 bytes a row, so that files
larger than memory can be joined; two different rows have the same hash once in 2^64. The `*_training.json` files repeat
the nodes of `trajectories.parquet`, and are not compared.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import JsonValue

from malt.config.base import Recorded
from malt.datasets.manifest import FileEntry, Manifest
from malt.datasets.rows.tables import MEASURED, SCHEMAS
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import VersionError
from malt.questions.shingles import MIX, Hashes
from malt.sanitize import code_span, escape_markdown, markdown_table

_COUNTED = ("added", "removed", "changed", "relabelled", "rewritten")


class Change(Recorded):
    """Value in the first version and in the second; None where a version lacks it."""

    old: JsonValue
    new: JsonValue


class InputChanges(Recorded):
    """Differences between the inputs of the two versions."""

    config: dict[str, Change]
    """Config keys, by dotted path."""
    prompts: dict[str, Change]
    """Digests of prompt files, by path."""
    questions: dict[str, Change]
    """Digest of the questions' values in order."""
    code: dict[str, Change]


class ChangeCounts(Recorded):
    """Numbers of rows that differ."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    """Rows with the same id that differ in a column other than measurements."""
    relabelled: int = 0
    """Changed rows whose label or value differs."""
    rewritten: int = 0
    """Changed rows whose text or prompt differs."""


class RowChange(Recorded):
    """One row that differs."""

    row_id: str
    """`QUESTION_ID/NODE_ID` for a row of the trajectories, `QUESTION_ID` for one of the questions."""
    change: Literal["added", "removed", "changed"]
    columns: dict[str, Change]
    """Columns that differ, of a changed row; empty for added and removed ones."""


class QuestionChange(ChangeCounts):
    """Differences in one question's rows of a file."""

    question_id: str
    rows: tuple[RowChange, ...]


class FileChange(ChangeCounts):
    """Differences in one file."""

    rows: tuple[int, int]
    """Number of rows in the first version and in the second."""
    same: bool
    """Whether both hold the same rows in the same order; if false and no row differs, the order or a column does."""
    questions_changed: int = 0
    questions: tuple[QuestionChange, ...] = ()
    """Questions whose rows are listed, as many as the caller asked for."""


class ComparedVersion(Recorded):
    """One of the two compared versions."""

    version: str
    path: str
    content_sha256: str


class VersionDiff(Recorded):
    """Differences between two versions."""

    old: ComparedVersion
    new: ComparedVersion
    same_content: bool
    inputs: InputChanges
    files: dict[str, FileChange]

    @property
    def markdown(self) -> str:
        inputs = [
            f"- {group} {code_span(name)}: {code_span(str(change.old))} → {code_span(str(change.new))}"
            for group, changes in self.inputs
            for name, change in changes.items()
        ]
        files = [
            (code_span(file), *change.rows, *(getattr(change, name) for name in _COUNTED), change.questions_changed)
            for file, change in self.files.items()
            if not change.same
        ]
        table = markdown_table(("rows of", "old", "new", *_COUNTED, "questions"), files)
        title = f"# {escape_markdown(self.old.version)} → {escape_markdown(self.new.version)}"
        return "\n".join([title, "", *(inputs or ["No input differs."]), "", table, ""])


class _Side(NamedTuple):
    """One version's copy of a file."""

    version: DatasetVersion
    file: str

    @property
    def entry(self) -> FileEntry | None:
        """Manifest entry of the file; None where the version has no such file."""
        return self.version.manifest.files.get(self.file)

    @property
    def columns(self) -> list[str]:
        """Columns of the file, without measurements of the run."""
        names = pq.read_schema(self.version.path / self.file).names if self.entry else SCHEMAS[self.file].names
        return [name for name in names if name not in MEASURED]

    def read_batches(self, names: Collection[str]) -> Iterator[pa.RecordBatch]:
        if self.entry:
            with pq.ParquetFile(self.version.path / self.file) as parquet:
                yield from parquet.iter_batches(_BATCH_ROWS, columns=list(names))


def compare(old: DatasetVersion, new: DatasetVersion, questions: int | None = None) -> VersionDiff:
    """Compare two versions, of the same dataset or not.

    `questions` limits the questions whose rows are listed for each file: that many with added rows, with removed rows
    and with changed rows each; None lists all. Raises `VersionError` where a file cannot be read.
    """
    return VersionDiff(
        old=_name(old),
        new=_name(new),
        same_content=old.manifest.content_sha256 == new.manifest.content_sha256,
        inputs=_compare_inputs(old.manifest, new.manifest),
        files={file: _compare_file(_Side(old, file), _Side(new, file), questions) for file in SCHEMAS},
    )


def _compare_inputs(old: Manifest, new: Manifest) -> InputChanges:
    return InputChanges(
        config=compare_values(dict(flatten_table(old.config)), dict(flatten_table(new.config))),
        prompts=compare_values(old.prompts, new.prompts),
        questions=compare_values({"sha256": old.questions.sha256}, {"sha256": new.questions.sha256}),
        code=compare_values(old.code.model_dump(), new.code.model_dump()),
    )


def _name(version: DatasetVersion) -> ComparedVersion:
    digest = version.manifest.content_sha256
    return ComparedVersion(version=version.reference, path=str(version.path), content_sha256=digest)


def flatten_table(table: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the values of nested tables by dotted path."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flatten_table(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def compare_values(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, Change]:
    """Return the values that differ, by name; None stands for one that is missing."""
    changes = {name: Change(old=old.get(name), new=new.get(name)) for name in {**old, **new}}
    return {name: change for name, change in changes.items() if change.old != change.new}


def _compare_file(old: _Side, new: _Side, questions: int | None) -> FileChange:
    rows = (old.entry and old.entry.rows) or 0, (new.entry and new.entry.rows) or 0
    if (old.entry and old.entry.rows_sha256) == (new.entry and new.entry.rows_sha256):
        return FileChange(rows=rows, same=True)
    try:
        columns = [name for name in old.columns if name in new.columns]
        numbers: dict[str, int] = {}
        changes = _join(_hash_rows(old, columns, numbers), _hash_rows(new, columns, numbers))
        shown = _group_changes(changes, list(numbers), questions, (old, new), columns)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        paths = " or ".join(str(side.version.path) for side in (old, new))
        raise VersionError(f"{old.file} of {paths} cannot be read ({error}); try: malt verify on both") from error
    number = int(changes["question"].nunique())
    return FileChange(rows=rows, same=False, questions_changed=number, questions=shown, **_count(changes))


def _count(changes: pd.DataFrame) -> dict[str, int]:
    return {name: int(changes[name].sum()) for name in _COUNTED}


def _join(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that differ: `key`, `question`, and a boolean column for each name in `_COUNTED`."""
    both = old.merge(new, on="key", suffixes=("", "_new"))
    relabelled, rewritten, rest = (both[name] != both[f"{name}_new"] for name in ("values", "texts", "rest"))
    changed = both.assign(changed=relabelled | rewritten | rest, relabelled=relabelled, rewritten=rewritten)
    parts = [
        changed[changed["changed"]],
        old[~old["key"].isin(new["key"])].assign(removed=True),
        new[~new["key"].isin(old["key"])].assign(added=True),
    ]
    found = pd.concat([part.reindex(columns=["key", "question", *_COUNTED], fill_value=False) for part in parts])
    return found.astype(dict.fromkeys(_COUNTED, bool))


def _group_changes(
    changes: pd.DataFrame, question_ids: list[str], most: int | None, sides: tuple[_Side, _Side], columns: list[str]
) -> tuple[QuestionChange, ...]:
    """Return, for each way of changing, the first `most` questions with such rows, in the order of the two versions."""
    ways = [changes.loc[changes[way], "question"] for way in ("added", "removed", "changed")]
    first = pd.concat([numbers.drop_duplicates().sort_values()[:most] for numbers in ways])
    shown = changes[changes["question"].isin(first)]
    old = _find_rows(sides[0], columns, shown.loc[~shown["added"], "key"])
    new = _find_rows(sides[1], columns, shown.loc[~shown["removed"], "key"])
    return tuple(
        QuestionChange(
            question_id=question_ids[int(str(number))],
            rows=tuple(_row_change(old.get(int(key)), new.get(int(key))) for key in rows["key"]),
            **_count(rows),
        )
        for number, rows in shown.groupby("question", sort=True)
    )


def _row_change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> RowChange:
    if old is None or new is None:
        return RowChange(row_id=(old or new or {})["row_id"], change="removed" if old else "added", columns={})
    return RowChange(row_id=old["row_id"], change="changed", columns=compare_values(old, new))


_BATCH_ROWS = 10_000

_VALUES = frozenset({"value", "label", "reward", "chosen_value", "rejected_value", "margin"})
"""Columns of a row's value and label."""
_TEXTS = frozenset({"text", "prompt", "completion", "chosen", "rejected", "question", "ground_truth", "choices"})
"""Columns of the texts that a model is trained on, and of the question."""


def group_columns(names: Iterable[str]) -> dict[str, list[str]]:
    """Group columns by the kind of a difference in them: values, texts or the rest."""
    groups: dict[str, list[str]] = {"values": [], "texts": [], "rest": []}
    for name in names:
        groups["values" if name in _VALUES else "texts" if name in _TEXTS else "rest"].append(name)
    return groups


def _hash_rows(side: _Side, names: Collection[str], question_numbers: dict[str, int]) -> pd.DataFrame:
    """Return each row's `key`, its `question` as a number (new questions get the next), and a hash per column group."""
    groups = group_columns(names)
    frames = [
        pd.DataFrame(
            {
                "key": _hash_values(_row_ids(batch)),
                "question": number_texts(batch.column("question_id"), question_numbers),
                **{group: hash_columns(batch, part) for group, part in groups.items()},
            }
        )
        for batch in side.read_batches(names)
    ]
    types = {"key": np.uint64, "question": np.int64, **dict.fromkeys(groups, np.uint64)}
    none = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
    return pd.concat(frames or [none], ignore_index=True).drop_duplicates("key")


def _find_rows(side: _Side, names: Collection[str], keys: "pd.Series[int]") -> Mapping[int, dict[str, Any]]:
    """Read the rows with these keys, by key; each has an extra column `row_id`."""
    wanted, found = pd.Index(keys), dict[int, dict[str, Any]]()
    for batch in side.read_batches(names) if len(wanted) else ():
        ids = _row_ids(batch)
        hashes = _hash_values(ids)
        places = np.flatnonzero(wanted.get_indexer(pd.Index(hashes)) != -1)
        rows = batch.take(pa.array(places)).to_pylist()
        for place, row in zip(places, rows, strict=True):
            found[int(hashes[place])] = {**row, "row_id": ids[int(place)].as_py()}
        if len(found) == len(wanted):
            break
    return found


def _row_ids(batch: pa.RecordBatch) -> pa.Array:
    """Return the ids of the rows: their `row_id`, else question and node, else the question alone."""
    if "row_id" in batch.schema.names:
        return batch.column("row_id")
    if "node_id" in batch.schema.names:
        return pc.binary_join_element_wise(batch.column("question_id"), batch.column("node_id"), "/")
    return batch.column("question_id")


def number_texts(texts: pa.Array, numbers: dict[str, int]) -> NDArray[np.int64]:
    encoded = texts.dictionary_encode()
    known = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array(known, dtype=np.int64)[encoded.indices.to_numpy()]
    return found


def hash_columns(batch: pa.RecordBatch, names: Iterable[str]) -> Hashes:
    """Hash some columns of each row into one number per row."""
    together = np.zeros(batch.num_rows, dtype=np.uint64)
    for name in names:
        column = batch.column(name)
        for part in (_hash_values(_flatten(column)), _hash_values(_list_sizes(column))):
            together = together * MIX + part
    return together


def _flatten(column: pa.Array) -> pa.Array:
    """Join lists of texts or of messages into one text per row; return other columns unchanged."""
    if not pa.types.is_list(column.type):
        return column
    items = column.values
    if pa.types.is_struct(items.type):
        items = pc.binary_join_element_wise(*(items.field(field.name) for field in items.type), "\x1e")
    return pc.binary_join(pa.ListArray.from_arrays(column.offsets, items), "\x1f")


def _list_sizes(column: pa.Array) -> pa.Array:
    """Return what `_flatten` loses: the length of each list (-1 for null), or which values are not null."""
    if pa.types.is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), -1)
    return column.is_valid()


def _hash_values(column: pa.Array) -> Hashes:
    if pa.types.is_string(column.type):
        values = pc.fill_null(column, "").to_numpy(zero_copy_only=False).astype(object)
    else:
        values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return np.asarray(pd.util.hash_array(values, categorize=False), dtype=np.uint64)
