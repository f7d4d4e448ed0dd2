"""Dataset versions: opening and listing them, and their rows as data frames. `publish.writer` writes them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from malt.canonical_json import file_sha256
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.manifest import MANIFEST_FILE, Manifest, read_manifest
from malt.datasets.rows.tables import QUESTIONS_FILE, TRAJECTORIES_FILE, role_file
from malt.datasets.version.folders import (
    LATEST,
    TAG,
    folder_numbers,
    latest_number,
    tags_of,
    version_numbers,
    why_not_latest,
)
from malt.datasets.version.published import SHELVES, Published
from malt.errors import VersionError
from malt.questions.screening import Split
from malt.sanitize import escape_controls

if TYPE_CHECKING:
    import pandas as pd

    from malt.trees.credit import ValuedTree

V = TypeVar("V")

_NAME = "[a-z0-9-]{1,100}"
_REFERENCE = re.compile(rf"(?P<name>{_NAME})(@(?P<wanted>v?[1-9][0-9]*|{LATEST}|{TAG.pattern}))?")


@dataclass(frozen=True)
class DatasetVersion(Published[Manifest]):
    """One immutable version on disk."""

    @property
    def tags(self) -> list[str]:
        """Tags that point at the version now."""
        return [tag for tag, number in tags_of(self.path.parent).items() if self.path.name == f"v{number}"]

    @property
    def spec(self) -> RunSpec:
        """Spec that the version was made from. Raises `VersionError` where this release cannot read it."""
        return self.manifest.spec

    def is_whole(self, file: str) -> bool:
        """Whether a file still has the bytes that it was published with."""
        entry, path = self.manifest.files.get(file), self.path / file
        return entry is not None and path.is_file() and file_sha256(path) == entry.sha256

    def _repr_html_(self) -> str:
        """Return the figures for a notebook; HTML and control characters in names of models are escaped."""
        shown = {name: self.figures[name] for name in ("asked", "accuracy", "yields", "used")}
        tables = [f"<h4>{name}</h4>{frame.to_html(index=False, border=0)}" for name, frame in shown.items()]
        return escape_controls("".join([f"<h3>{self.reference}</h3>", *tables]))

    def refuse_foreign(self, datasets_dir: Path, named: str, instead: str) -> None:
        """Raise `VersionError` for a version from elsewhere; `named` says what its config would make the caller use."""
        if not self.is_within(datasets_dir):
            why = f"{self.path} is from elsewhere, and its config names {named}"
            raise VersionError(f"{why}. Nothing was done; {instead}")

    @property
    def trajectories(self) -> "pd.DataFrame":
        """Nodes, one a row."""
        return self._frame(TRAJECTORIES_FILE)

    @property
    def questions(self) -> "pd.DataFrame":
        """Questions, one a row, also those without a complete tree."""
        return self._frame(QUESTIONS_FILE)

    def sft(self, role: Role | str, split: Split = "train") -> "pd.DataFrame":
        """The role's supervised examples."""
        return self._frame(role_file("sft", role, split))

    def dpo(self, role: Role | str, split: Split = "train") -> "pd.DataFrame":
        """The role's preference pairs."""
        return self._frame(role_file("dpo", role, split))

    def kto(self, role: Role | str, split: Split = "train") -> "pd.DataFrame":
        """The role's labelled texts, unpaired."""
        return self._frame(role_file("kto", role, split))

    @property
    def figures(self) -> "dict[str, pd.DataFrame]":
        """The report's figures by name: accuracy, flips, mix, values, yields, losses, asked, used."""
        from malt.datasets.stats.figures import tabulate_figures

        return tabulate_figures(self.manifest)

    def tree_rows(self, question_id: str) -> "pd.DataFrame":
        """One question's nodes, depth first. Raises `VersionError` where its tree is not in the version."""
        if (rows := self._frame(TRAJECTORIES_FILE, question_id)).empty:
            raise self._no_tree(question_id)
        return rows

    def tree(self, question_id: str) -> "ValuedTree":
        """One question's tree, with grades and values. Raises `VersionError` where it is not in the version."""
        from malt.datasets.version.reading import read_question_row, stored_tree

        question = read_question_row(self, question_id)
        if question is None:
            raise self._no_tree(question_id)
        return stored_tree(self, question)

    def trees(self) -> "Iterator[ValuedTree]":
        """Iterate over all complete trees in the order of their questions, one in memory at a time."""
        from malt.datasets.version.reading import stored_trees

        return (stored.valued for stored in stored_trees(self))

    def _no_tree(self, question_id: str) -> VersionError:
        return VersionError(
            f"{self.reference} has no tree for question {question_id!r}; questions.parquet lists the questions, "
            f"and {MANIFEST_FILE} the branches that failed"
        )

    def _frame(self, file: str, question_id: str | None = None) -> "pd.DataFrame":
        from malt.datasets.version.reading import read_table, reading

        with reading(self.path, str(self.path / file)):
            frame: pd.DataFrame = read_table(self, file, question_id).to_pandas()
        return frame


def open_version(reference: str | Path, datasets_dir: Path | None = None) -> DatasetVersion:
    """Open `NAME` (its newest version), `NAME@v3`, `NAME@TAG`, or the path of a version's folder.

    `datasets_dir` is by default that of the settings. Raises `VersionError`, which lists the versions that exist.
    """
    return open_folder(locate(reference, datasets_dir))


def locate(reference: str | Path, versions_dir: Path | None = None, shelf: str = "") -> Path:
    """Return the folder of a version, found as by `open_version`, without opening the version."""
    try:
        path = Path(reference).expanduser()
        is_folder = (path / MANIFEST_FILE).is_file()
    except (OSError, RuntimeError) as error:
        raise VersionError(f"{str(reference)[:60]} cannot be opened: {error}") from error
    if is_folder:
        return path.resolve()
    named = _REFERENCE.fullmatch(str(reference).removeprefix(f"{shelf}/"))
    if named is None:
        raise VersionError(f"{reference} is neither NAME, NAME@v3, NAME@TAG, nor a folder with a {MANIFEST_FILE}")
    folder = (Settings().datasets_dir if versions_dir is None else versions_dir) / named["name"]
    return folder / f"v{choose_number(folder, named['wanted'] or LATEST)}"


def choose_number(folder: Path, wanted: str = LATEST) -> int:
    """Return the number of the wanted version, which is given by number, by tag, or as `latest`."""
    numbers, tags = version_numbers(folder), tags_of(folder)
    if not numbers:
        others = ", ".join(list_names(folder.parent)) or "none yet"
        place = f"{folder.parent.absolute()} (MALT_DATA_DIR)"
        kind = folder.parent.name.removesuffix("s") if folder.parent.name in SHELVES else "dataset"
        raise VersionError(f"no {kind} {folder.name!r} in {place}; there are: {others}")
    if wanted == LATEST:
        if (number := latest_number(folder)) is not None:
            return number
        raise VersionError(
            f"dataset {folder.name!r} has no latest version: {why_not_latest(folder, numbers[-1])}. To use it all the "
            f"same, name it: {folder.name}@v{numbers[-1]}"
        )
    is_tag = TAG.fullmatch(wanted) is not None
    number = tags.get(wanted) if is_tag else int(wanted.removeprefix("v"))
    if number in folder_numbers(folder):
        return number
    known = ", ".join([*(f"v{each}" for each in numbers), *tags])
    missing = f"tag {wanted}" if is_tag else f"version v{number}"
    raise VersionError(f"dataset {folder.name!r} has no {missing}; there are: {known}")


def open_folder(path: Path) -> DatasetVersion:
    """Open the version in a folder. Links are followed, so the path stays valid when a link moves."""
    folder = path.resolve()
    return DatasetVersion(folder, read_manifest(folder))


class Listed(NamedTuple, Generic[V]):
    """Versions that were found, opened where possible."""

    versions: list[V]
    unreadable: dict[str, VersionError]
    """Errors of the versions that cannot be opened, by reference."""


def list_versions(datasets_dir: Path, name: str | None = None) -> Listed[DatasetVersion]:
    """List the versions of one dataset or of all, by name and number. Raises `VersionError` where `name` has none."""
    if name is not None and not re.fullmatch(_NAME, name):
        raise VersionError(f"{name[:60]!r} names no dataset; a name has lower-case letters, digits and hyphens")
    return list_opened(datasets_dir, name, open_folder)


def list_opened(versions_dir: Path, name: str | None, open_one: Callable[[Path], V], shelf: str = "") -> Listed[V]:
    """List the versions of one name or of all, of any kind."""
    if name is not None:
        choose_number(versions_dir / name)
    listed = Listed[V]([], {})
    for folder in (versions_dir / each for each in ([name] if name else list_names(versions_dir))):
        for number in version_numbers(folder):
            try:
                listed.versions.append(open_one(folder / f"v{number}"))
            except VersionError as error:
                listed.unreadable[f"{shelf}{folder.name}@v{number}"] = error
    return listed


def list_names(datasets_dir: Path) -> list[str]:
    if not datasets_dir.is_dir():
        return []
    return sorted(entry.name for entry in datasets_dir.iterdir() if version_numbers(entry))
