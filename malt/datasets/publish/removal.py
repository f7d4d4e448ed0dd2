"""Removing a version: gone at once for whoever looks, its files then; never one that `latest` or a tag needs."""

from pathlib import Path
from typing import NamedTuple

from malt.datasets.publish.folders import LATEST, changing, discard, number_of, point, retire, size_of, version_numbers
from malt.datasets.publish.tags import tags_of
from malt.datasets.version.dataset_version import locate
from malt.errors import VersionError


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
    with changing(folder):
        refuse_needed(folder, number)
        retired = retire(path)
    size = size_of(retired)
    discard(retired)
    return Removed(f"{folder.name}@{path.name}", path, size)


def refuse_needed(folder: Path, number: int) -> None:
    """Raise where a version is needed or not there. The newest always is needed: so no number is given twice."""
    numbers = version_numbers(folder)
    if number not in numbers:
        raise VersionError(f"{folder.name}@v{number} was just removed")
    point(folder, LATEST, numbers[-1])
    if number == numbers[-1]:
        raise VersionError(
            f"{folder.name}@v{number} stays: `latest` names it. Make a newer version first; to give up the whole "
            f"dataset, delete {folder}"
        )
    tags = [tag for tag, named in tags_of(folder).items() if named == number]
    if tags:
        raise VersionError(
            f"{folder.name}@v{number} stays: it is tagged {', '.join(tags)}. "
            f"First: malt tag {folder.name} {tags[0]} --remove"
        )
