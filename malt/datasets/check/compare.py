"""Comparing two versions: which inputs differ, and which rows were added, removed or changed, question by question.

Rows are joined by their ids, over `marks`. The three `*_training.json` files hold the nodes of `trajectories.parquet`
over again, and are not compared by themselves.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from malt.config.base import Recorded
from malt.datasets.check.row_hashes import mark_rows, no_marks, rows_by_key
from malt.datasets.manifest import Manifest
from malt.datasets.rows.tables import MEASURED, SCHEMAS
from malt.datasets.version.dataset_version import DatasetVersion
from malt.errors import VersionError
from malt.sanitize import code_span, escape_markdown, markdown_table

Kind = Literal["added", "removed", "changed"]

COUNTED = ("added", "removed", "changed", "relabelled", "rewritten")


class Change(Recorded):
    """A value in the first version and in the second; None where there is none."""

    old: JsonValue
    new: JsonValue


class InputChanges(Recorded):
    """What the two versions were made from, as far as it differs."""

    config: dict[str, Change]
    """By dotted path."""
    prompts: dict[str, Change]
    """Digests of prompt files, by path."""
    questions: dict[str, Change]
    """The digest of the questions' values in order."""
    code: dict[str, Change]


class ChangeCounts(Recorded):
    """How many rows differ."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    """Rows of the same id that differ in anything but measurements."""
    relabelled: int = 0
    """Of the changed ones, those of another label or value."""
    rewritten: int = 0
    """Of the changed ones, those of another text or prompt."""


class RowChange(Recorded):
    """One row that differs."""

    row_id: str
    """`QUESTION_ID/NODE_ID` for a row of the trajectories, `QUESTION_ID` for one of the questions."""
    change: Kind
    columns: dict[str, Change]
    """What differs in a row that changed."""


class QuestionChange(ChangeCounts):
    """What differs in one question's rows of a file."""

    question_id: str
    rows: tuple[RowChange, ...]


class FileChange(ChangeCounts):
    """What differs in one file."""

    rows: tuple[int, int]
    """In the first version and in the second."""
    same: bool
    """Whether both hold the same rows in the same order; where not, and no row differs, the order or a column does."""
    questions_changed: int = 0
    questions: tuple[QuestionChange, ...] = ()
    """As many as were asked for."""


class Compared(Recorded):
    """One of two versions that were compared."""

    version: str
    path: str
    content_sha256: str


class VersionDiff(Recorded):
    """What changed from one version to another."""

    old: Compared
    new: Compared
    same_content: bool
    inputs: InputChanges
    files: dict[str, FileChange]

    @property
    def markdown(self) -> str:
        """The counts of what changed, as a page."""
        inputs = [
            f"- {group} {code_span(name)}: {code_span(str(change.old))} → {code_span(str(change.new))}"
            for group, changes in self.inputs
            for name, change in changes.items()
        ]
        files = [
            (code_span(file), *change.rows, *(getattr(change, name) for name in COUNTED), change.questions_changed)
            for file, change in self.files.items()
            if not change.same
        ]
        table = markdown_table(("rows of", "old", "new", *COUNTED, "questions"), files)
        title = f"# {escape_markdown(self.old.version)} → {escape_markdown(self.new.version)}"
        return "\n".join([title, "", *(inputs or ["No input differs."]), "", table, ""])


class Side(NamedTuple):
    """One version's copy of a file."""

    version: DatasetVersion
    file: str

    @property
    def digest(self) -> str | None:
        """The digest of its rows; None where the version has no such file."""
        entry = self.version.manifest.files.get(self.file)
        return None if entry is None else entry.rows_sha256

    @property
    def rows(self) -> int:
        """How many rows it has."""
        entry = self.version.manifest.files.get(self.file)
        return 0 if entry is None else entry.rows or 0

    @property
    def columns(self) -> list[str]:
        """Its columns but for those that tell of the run."""
        names = pq.read_schema(self.version.path / self.file).names if self.digest else SCHEMAS[self.file].names
        return [name for name in names if name not in MEASURED]

    def marks(self, columns: list[str], question_numbers: dict[str, int]) -> pd.DataFrame:
        """Its rows' marks."""
        if self.digest is None:
            return no_marks()
        return mark_rows(self.version.path / self.file, columns, question_numbers)

    def read(self, columns: list[str], keys: "pd.Series[int]") -> Mapping[int, dict[str, Any]]:
        """Its rows with these keys."""
        return {} if keys.empty else rows_by_key(self.version.path / self.file, columns, keys)


def compare(old: DatasetVersion, new: DatasetVersion, questions: int | None = None) -> VersionDiff:
    """Say what changed from one version to another, of the same dataset or not.

    `questions`: of how many changed questions a file tells the rows; None: of all. Raises `VersionError` where a file
    cannot be read.
    """
    return VersionDiff(
        old=named(old),
        new=named(new),
        same_content=old.manifest.content_sha256 == new.manifest.content_sha256,
        inputs=compare_inputs(old.manifest, new.manifest),
        files={file: compare_file(Side(old, file), Side(new, file), questions) for file in SCHEMAS},
    )


def named(version: DatasetVersion) -> Compared:
    """Name a version."""
    return Compared(version=version.reference, path=str(version.path), content_sha256=version.manifest.content_sha256)


def compare_inputs(old: Manifest, new: Manifest) -> InputChanges:
    """Say which inputs differ."""
    return InputChanges(
        config=differing(dict(flat(old.config)), dict(flat(new.config))),
        prompts=differing(old.prompts, new.prompts),
        questions=differing({"sha256": old.questions.sha256}, {"sha256": new.questions.sha256}),
        code=differing(old.code.model_dump(), new.code.model_dump()),
    )


def flat(table: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the values of nested tables by dotted path."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def differing(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, Change]:
    """Return what two tables do not agree on."""
    changes = {name: Change(old=old.get(name), new=new.get(name)) for name in {**old, **new}}
    return {name: change for name, change in changes.items() if change.old != change.new}


def compare_file(old: Side, new: Side, questions: int | None) -> FileChange:
    """Say which rows of a file differ."""
    rows = old.rows, new.rows
    if old.digest == new.digest:
        return FileChange(rows=rows, same=True)
    try:
        columns = [name for name in old.columns if name in new.columns]
        numbers: dict[str, int] = {}
        changes = join(old.marks(columns, numbers), new.marks(columns, numbers))
        told = by_question(changes, list(numbers), questions, (old, new), columns)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        paths = " or ".join(str(side.version.path) for side in (old, new))
        raise VersionError(f"{old.file} of {paths} cannot be read ({error}); try: malt verify on both") from error
    return FileChange(
        rows=rows,
        same=False,
        questions_changed=int(changes["question"].nunique()),
        questions=told,
        **{name: int(changes[name].sum()) for name in COUNTED},
    )


def join(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that differ: `key`, `question`, and what is true of each, a column for each of `COUNTED`."""
    both = old.merge(new, on="key", suffixes=("", "_new"))
    relabelled, rewritten, rest = (both[name] != both[f"{name}_new"] for name in ("values", "texts", "rest"))
    changed = both.assign(changed=relabelled | rewritten | rest, relabelled=relabelled, rewritten=rewritten)
    parts = [
        changed[changed["changed"]],
        old[~old["key"].isin(new["key"])].assign(removed=True),
        new[~new["key"].isin(old["key"])].assign(added=True),
    ]
    found = pd.concat([part.reindex(columns=["key", "question", *COUNTED], fill_value=False) for part in parts])
    return found.astype(dict.fromkeys(COUNTED, bool))


def by_question(
    changes: pd.DataFrame, question_ids: list[str], most: int | None, sides: tuple[Side, Side], columns: list[str]
) -> tuple[QuestionChange, ...]:
    """Tell what differs of the first questions, in the order of the first version and then of the second."""
    told = changes["question"].drop_duplicates().sort_values()[:most]
    shown = changes[changes["question"].isin(told)]
    old = sides[0].read(columns, shown.loc[~shown["added"], "key"])
    new = sides[1].read(columns, shown.loc[~shown["removed"], "key"])
    return tuple(
        QuestionChange(
            question_id=question_ids[int(str(number))],
            rows=tuple(row_change(old.get(int(key)), new.get(int(key))) for key in rows["key"]),
            **{name: int(rows[name].sum()) for name in COUNTED},
        )
        for number, rows in shown.groupby("question", sort=True)
    )


def row_change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> RowChange:
    """Tell one row that differs, with its values in the two versions."""
    if old is None or new is None:
        return RowChange(row_id=(old or new or {})["row_id"], change="removed" if old else "added", columns={})
    return RowChange(row_id=old["row_id"], change="changed", columns=differing(old, new))
