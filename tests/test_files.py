"""Replacing files, and room for them."""

from pathlib import Path

import pytest

from malt.files import is_full, replace_text


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    replace_text(path, "old")
    path.chmod(0o600)
    replace_text(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_device_or_folder_is_not_replaced(tmp_path: Path) -> None:
    for path in (Path("/dev/malt-is-not-there"), Path("/dev/fd/1"), tmp_path):
        with pytest.raises(OSError, match="is not a regular file"):
            replace_text(path, "text")


def test_a_file_system_without_room_is_full(tmp_path: Path) -> None:
    assert is_full(Path("/proc"))
    assert not is_full(tmp_path)
