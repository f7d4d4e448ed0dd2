"""Removal of versions, and garbage collection of store rows that no version uses and of folders left by dead writers.

A version uses the samples of its nodes, whose keys are in its trajectories, and the judge's samples, whose keys are
recorded nowhere. So all judge samples for a question of any version are kept, and all samples for a question of an
evaluation. Rows younger than a limit are kept too: a version not published yet may need them. Streams; keeps 8 bytes
for each node of all versions.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.datasets.rows.tables import TRAJECTORIES_FILE
from malt.datasets.version.dataset_version import DatasetVersion, locate, open_folder
from malt.datasets.version.folders import (
    STAGING,
    discard,
    folder_numbers,
    is_abandoned,
    latest_number,
    linked_numbers,
    lock_folder,
    move_away,
    number_of,
    numbered_entries,
    point_latest,
    size_of,
    tags_of,
    version_numbers,
)
from malt.datasets.version.published import SHELVES
from malt.datasets.version.reading import open_parquet, reading
from malt.errors import ConfigError, VersionError
from malt.llm.store.samples import ASIDE, OldRow, Store
from malt.questions.shingles import Hashes

_ANSWERS_FILE = "answers.parquet"
"""Answers of an evaluation version; its rows hold question ids but no request keys."""
_NOT_KNOWN = "so the store rows that it uses are not known; nothing was removed"


class Removed(NamedTuple):
    """A version that was removed."""

    version: str
    path: Path
    bytes: int


def remove_version(reference: str | Path, datasets_dir: Path | None = None) -> Removed:
    """Remove a version, damaged or not. Raises `VersionError` if it does not exist or is still needed.

    After a crash it is either whole, or removed but for a staging folder that the next publisher or `malt gc` deletes.
    """
    path = locate(reference, datasets_dir)
    folder, number = path.parent, number_of(path)
    with lock_folder(folder):
        _refuse_needed(folder, number)
        retired = move_away(path)
    size = size_of(retired)
    discard(retired)
    return Removed(f"{folder.name}@{path.name}", path, size)


def _refuse_needed(folder: Path, number: int) -> None:
    """Raise if a version is missing or needed. The newest is always needed, so that no number is used twice."""
    numbers = folder_numbers(folder)
    if number not in numbers:
        raise VersionError(f"{folder.name}@v{number} was just removed, or is a link to another place")
    point_latest(folder)
    if number in (numbers[-1], latest_number(folder)):
        is_latest = number == latest_number(folder)
        why = "`latest` names it" if is_latest else "it is the newest, and its number must not be used again"
        raise VersionError(
            f"{folder.name}@v{number} stays: {why}. Make a newer version first; to give up the whole dataset, "
            f"delete {folder}"
        )
    if tags := [tag for tag, named in tags_of(folder).items() if named == number]:
        raise _tagged_error(folder.name, number, tags)


def _tagged_error(name: str, number: int, tags: Sequence[str]) -> VersionError:
    first = f"First: malt tag {name} {tags[0]} --remove"
    return VersionError(f"{name}@v{number} stays: it is tagged {', '.join(tags)}. {first}")


class Garbage(NamedTuple):
    """Unused rows and folders that were found, or deleted."""

    versions: int
    """Number of versions that were checked; their rows are kept."""
    rows: int
    row_bytes: int
    """Size of the rows' texts."""
    folders: int
    folder_bytes: int


def collect_garbage(
    settings: Settings, older_than_s: float, *, delete: bool = False, also_in: Sequence[Path] = ()
) -> Garbage:
    """Count, or delete, what no version in the datasets folder and the folders of `also_in` uses.

    Raises `VersionError` if the rows that a version uses cannot be read, or if one is being made now. Raises
    `ConfigError` for deleting from a shared store (`store_url`) unless `also_in` names the other folders of datasets.
    """
    if delete and settings.store_url and not also_in:
        raise ConfigError(
            "MALT_STORE_URL names a store that versions in other places may need: name every folder of datasets made "
            "from it with --datasets (this one alone, if there is no other), then --delete"
        )
    places = [settings.datasets_dir, *also_in]
    versions = list(_whole_versions(places))
    used = _UsedKeys.of(versions, settings.evaluations_dir)
    before, rows, row_bytes = time.time() - older_than_s, 0, 0
    with Store(settings.store) as store:
        for window in store.old_rows(before):
            unused = used.find_unused(window)
            rows, row_bytes = rows + len(unused), row_bytes + sum(row.size for row in unused)
            if delete:
                _refuse_newcomers(places, versions)
                store.delete([row.key for row in unused], before)
    shelves = [*places, *(settings.data_dir / shelf for shelf in SHELVES)]
    return Garbage(len(versions), rows, row_bytes, *_clear(shelves, delete=delete))


def _dataset_folders(places: Sequence[Path]) -> Iterator[Path]:
    for place in dict.fromkeys(place.resolve() for place in places if _is_folder(place)):
        yield from (entry for entry in sorted(place.iterdir()) if _is_folder(entry))


def _is_folder(entry: Path) -> bool:
    """Whether the entry is a folder. Raises `VersionError` for a broken link: its missing target may use any row."""
    if entry.is_symlink() and not entry.exists():
        raise VersionError(f"{entry} is a broken link, {_NOT_KNOWN}. Put its target back, or remove the link")
    return entry.is_dir()


def _whole_versions(places: Sequence[Path]) -> Iterator[DatasetVersion]:
    """Yield all versions. Raises `VersionError` for one that is lost, or whose manifest or trajectories are damaged."""
    for folder in _dataset_folders(places):
        numbers = version_numbers(folder)
        for name, number in linked_numbers(folder).items():
            if number not in numbers:
                raise VersionError(
                    f"{folder / name} names v{number}, which is lost, {_NOT_KNOWN}. Put it back, or remove the link"
                )
        yield from (_open_whole(entry) for _, entry in sorted(numbered_entries(folder)) if _is_folder(entry))


def _open_whole(folder: Path) -> DatasetVersion:
    """Open the version in a folder. Raises `VersionError` if its manifest or trajectories are not as published."""
    reference = f"{folder.parent.name}@{folder.name}"
    try:
        version = open_folder(folder)
    except VersionError as error:
        raise VersionError(f"{error}, {_NOT_KNOWN}. First repair it, or: malt rm {reference}") from error
    if not version.is_whole(TRAJECTORIES_FILE):
        raise VersionError(
            f"{version.path / TRAJECTORIES_FILE} is not as published, {_NOT_KNOWN}. "
            f"First: malt rebuild {reference}, or malt rm {reference}"
        )
    return version


def _refuse_newcomers(places: Sequence[Path], known: Sequence[DatasetVersion]) -> None:
    """Raise if a version is being made, or was made since `known` was listed: it may use any row."""
    paths = {version.path for version in known}
    for folder in _dataset_folders(places):
        versions = ((folder / f"v{number}").resolve() for number in version_numbers(folder))
        unfinished = (entry for entry in folder.iterdir() if STAGING.fullmatch(entry.name) and not is_abandoned(entry))
        for new in chain(unfinished, (path for path in versions if path not in paths)):
            raise VersionError(f"{new} is a version being made, or just made; run malt gc again when it is complete")


class _UsedKeys(NamedTuple):
    """Keys and question ids in use, as sorted 64-bit hashes; a collision only keeps a row too many."""

    keys: Hashes
    questions: Hashes
    evaluated: Hashes

    @classmethod
    def of(cls, versions: Sequence[DatasetVersion], evaluations_dir: Path) -> Self:
        """Read the keys and questions of versions and evaluations. Raises `VersionError` if one cannot be read."""
        keys = questions = evaluated = np.empty(0, np.uint64)
        for version in versions:
            with reading(version.path), open_parquet(version.path / TRAJECTORIES_FILE) as file:
                own, filled = np.empty(file.metadata.num_rows, np.uint64), 0
                for batch in file.iter_batches(columns=["question_id", "request_key"]):
                    own[filled : filled + len(batch)] = _digests(batch.column("request_key"))
                    questions = np.union1d(questions, _digests(batch.column("question_id")))
                    filled += len(batch)
            own.sort()
            keys = np.union1d(keys, own) if len(keys) else own
        for answers in sorted(evaluations_dir.glob(f"*/v*/{_ANSWERS_FILE}")):
            try:
                ids = pq.read_table(answers, columns=["question_id"])["question_id"].unique()
            except (OSError, pa.ArrowException) as error:
                raise VersionError(f"{answers} cannot be read, {_NOT_KNOWN}. First repair it, or remove it") from error
            evaluated = np.union1d(evaluated, _digests(ids))
        return cls(keys, questions, evaluated)

    def find_unused(self, rows: Sequence[OldRow]) -> list[OldRow]:
        keys = [row.key.partition(ASIDE)[0] for row in rows]  # an older version may use an answer set aside since
        by_key = _contains(self.keys, _digests(pa.array(keys, pa.string())))
        questions = _digests(pa.array([row.question_id for row in rows], pa.string()))
        by_question, evaluated = _contains(self.questions, questions), _contains(self.evaluated, questions)
        is_judge = np.array([row.role == Role.EVALUATOR for row in rows], bool)
        used = np.where(is_judge, by_question, by_key) | evaluated
        return [row for row, is_used in zip(rows, used, strict=True) if not is_used]


def _digests(texts: pa.Array) -> Hashes:
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)


def _contains(among: Hashes, wanted: Hashes) -> npt.NDArray[np.bool_]:
    if not len(among):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return cast("npt.NDArray[np.bool_]", among[places] == wanted)


def _clear(places: Sequence[Path], *, delete: bool) -> tuple[int, int]:
    """Count, or delete, what dead writers left in versions' folders; return the number of entries and their bytes."""
    folders = (folder for folder in _dataset_folders(places) if not folder.is_symlink())
    left = [entry for entry in chain.from_iterable(map(Path.iterdir, folders)) if is_abandoned(entry)]
    size = sum(map(size_of, left))
    for entry in left if delete else ():
        discard(entry)
    return len(left), size
