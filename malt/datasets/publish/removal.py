"""Removal: a version that nothing names; rows of the store that no version uses; folders whose writers are gone.

A version uses the samples of its nodes, which its trajectories name, and the judge's behind their grades, which nothing
names: all that a judge said to a question of any version stays, and all that was said to a question of an evaluation.
Of what is not published yet only age tells whether it is still wanted, so rows younger than a limit stay too. Streams;
keeps 8 bytes for each node of all versions.
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
"""Of an evaluation version: its rows name questions, and no keys."""
_NOT_KNOWN = "so what that uses is not known; nothing was removed"


class Removed(NamedTuple):
    """A version that is no more."""

    version: str
    path: Path
    bytes: int


def remove_version(reference: str | Path, datasets_dir: Path | None = None) -> Removed:
    """Remove a version, damaged or not. Raises `VersionError` where it is needed or not there.

    A crash leaves it whole, or gone but for a folder that the next publisher or `malt gc` clears away.
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
    """Raise where a version is not there, or needed. The newest always is: so no number is given twice."""
    numbers = folder_numbers(folder)
    if number not in numbers:
        raise VersionError(f"{folder.name}@v{number} was just removed, or is a link to elsewhere")
    point_latest(folder)
    if number in (numbers[-1], latest_number(folder)):
        why = "`latest` names it" if number == latest_number(folder) else "its number must not be given again"
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
    """What is, or was, of no use."""

    versions: int
    """Those whose rows stay."""
    rows: int
    row_bytes: int
    """Of their texts."""
    folders: int
    folder_bytes: int


def collect_garbage(
    settings: Settings, older_than_s: float, *, delete: bool = False, also_in: Sequence[Path] = ()
) -> Garbage:
    """Count, or delete, what no version uses in the datasets folder and in those `also_in`.

    Raises `VersionError` where it cannot be known what a version uses, or one is just being made; `ConfigError` where
    rows are to be deleted from a store that others may have versions of, unless `also_in` says where those are.
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
            unused = used.left_out(window)
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
    """Whether there is a folder. Raises `VersionError` for a link to nowhere: what should be there may use any row."""
    if entry.is_symlink() and not entry.exists():
        raise VersionError(f"{entry} names what is not there, {_NOT_KNOWN}. Put that back, or remove the link")
    return entry.is_dir()


def _whole_versions(places: Sequence[Path]) -> Iterator[DatasetVersion]:
    """Yield all versions. Raises `VersionError` for one that is lost, or damaged where it says what it uses."""
    for folder in _dataset_folders(places):
        numbers = version_numbers(folder)
        for name, number in linked_numbers(folder).items():
            if number not in numbers:
                raise VersionError(
                    f"{folder / name} names v{number}, which is lost, {_NOT_KNOWN}. Put it back, or remove the link"
                )
        yield from (_open_whole(entry) for _, entry in sorted(numbered_entries(folder)) if _is_folder(entry))


def _open_whole(folder: Path) -> DatasetVersion:
    """Return the version in a folder. Raises `VersionError` where its manifest or trajectories are not as published."""
    reference = f"{folder.parent.name}@{folder.name}"
    try:
        version = open_folder(folder)
    except VersionError as error:
        raise VersionError(f"{error}, {_NOT_KNOWN}. First mend it, or: malt rm {reference}") from error
    if not version.is_whole(TRAJECTORIES_FILE):
        raise VersionError(
            f"{version.path / TRAJECTORIES_FILE} is not as published, {_NOT_KNOWN}. "
            f"First: malt rebuild {reference}, or malt rm {reference}"
        )
    return version


def _refuse_newcomers(places: Sequence[Path], known: Sequence[DatasetVersion]) -> None:
    """Raise where a version is being made, or was since these were looked at: it may use any row."""
    paths = {version.path for version in known}
    for folder in _dataset_folders(places):
        versions = ((folder / f"v{number}").resolve() for number in version_numbers(folder))
        unfinished = (entry for entry in folder.iterdir() if STAGING.fullmatch(entry.name) and not is_abandoned(entry))
        for new in chain(unfinished, (path for path in versions if path not in paths)):
            raise VersionError(f"{new} is a version that was just made, or is; run malt gc again when it is there")


class _UsedKeys(NamedTuple):
    """What versions use, as sorted digests of 64 bits: two keys that share one only keep a row too many."""

    keys: Hashes
    questions: Hashes
    evaluated: Hashes

    @classmethod
    def of(cls, versions: Sequence[DatasetVersion], evaluations_dir: Path) -> Self:
        """Read what versions and evaluations use. Raises `VersionError` where they cannot be read."""
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
                raise VersionError(f"{answers} cannot be read, {_NOT_KNOWN}. First mend it, or remove it") from error
            evaluated = np.union1d(evaluated, _digests(ids))
        return cls(keys, questions, evaluated)

    def left_out(self, rows: Sequence[OldRow]) -> list[OldRow]:
        keys = [row.key.partition(ASIDE)[0] for row in rows]  # an answer set aside may be an older version's
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
    """Count, or remove, what dead writers left in datasets' folders; return how many things, and their bytes."""
    folders = (folder for folder in _dataset_folders(places) if not folder.is_symlink())
    left = [entry for entry in chain.from_iterable(map(Path.iterdir, folders)) if is_abandoned(entry)]
    size = sum(map(size_of, left))
    for entry in left if delete else ():
        discard(entry)
    return len(left), size
