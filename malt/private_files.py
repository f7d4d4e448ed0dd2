"""Files that are this user's alone, whatever the umask: folders 0700, files 0600."""

from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def make_private_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; what is there already keeps its mode."""
    missing = [each for each in path.parents if not each.exists()]
    for folder in [*reversed(missing), path]:
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def make_private(path: Path) -> None:
    """Close a file or folder of ours to others; a link stays as it is."""
    if not path.is_symlink():
        path.chmod(PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)
