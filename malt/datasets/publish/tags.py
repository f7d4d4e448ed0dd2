"""Tags: names that a dataset's versions are given, each a link beside `latest`."""

import re
from pathlib import Path

from malt.datasets.publish.folders import changing, links, number_named, point, sync
from malt.errors import VersionError

TAG = re.compile(r"(?![vV][0-9]|(?i:latest)\Z)[A-Za-z][A-Za-z0-9._-]{0,99}")
"""What can be a tag: nothing that reads like a number or like `latest`."""


def tags_of(folder: Path) -> dict[str, int]:
    """The numbers of the versions that a dataset's tags name, by tag."""
    return {name: number for name, number in links(folder).items() if TAG.fullmatch(name)}


def set_tag(folder: Path, tag: str, number: int, *, move: bool = False) -> int | None:
    """Let a tag name a version, and return what it named before.

    Raises `VersionError` for what can be no tag, for a version that is not there, and for a tag that names another
    version, unless it shall `move`.
    """
    if not TAG.fullmatch(tag):
        raise VersionError(
            f"{tag[:60]!r} can be no tag: it begins with a letter, goes on with letters, digits, '.', '_', '-', and "
            "looks neither like a version's number nor like 'latest'"
        )
    with changing(folder):
        before = number_named(folder / tag)
        if not (folder / f"v{number}").is_dir():
            raise VersionError(f"{folder.name}@v{number} is not there; tag another version")
        if before not in (None, number) and not move:
            raise VersionError(f"{folder.name}@{tag} names v{before}; to let it name v{number}, add --move")
        if before is None and (folder / tag).exists():
            raise VersionError(f"{folder / tag} is there, and is no tag; move it away, or choose another name")
        point(folder, tag, number)
    return before


def remove_tag(folder: Path, tag: str) -> int:
    """Remove a tag, and return what it named. Raises `VersionError` where there is no such tag."""
    with changing(folder):
        tags = tags_of(folder)
        if tag not in tags:
            there = ", ".join(tags) or "none"
            raise VersionError(f"dataset {folder.name!r} has no tag {tag[:60]!r}; there are: {there}")
        (folder / tag).unlink()
        sync(folder)
    return tags[tag]
