"""What an exported folder says of itself: `export.json`, by which a later export knows that it may take its place."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from malt.canonical_json import file_sha256
from malt.config.roles import Role
from malt.errors import InputError
from malt.questions.screening import Split

EXPORT_MANIFEST_FILE = "export.json"


class ExportedFile(BaseModel):
    """One file of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Below the export's folder."""
    kind: str
    role: Role | None
    """None where a row holds all roles."""
    split: Split
    rows: int
    left_out: dict[str, int] = {}
    """What the version holds and the format does not take, by why."""

    @property
    def config(self) -> str:
        """The name under which `load_dataset` finds it: `sft-generator`, `prm`."""
        return self.kind if self.role is None else f"{self.kind}-{self.role}"


class ExportManifest(BaseModel):
    """What was exported from which version, and the digest of every file beside this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    dataset: str
    version: int
    content_sha256: str
    files: tuple[ExportedFile, ...]
    empty: tuple[ExportedFile, ...]
    """Files that would have no row, which are not there: no tool loads one."""
    sha256: dict[str, str] = {}
    """Of every file of the folder, by its path; this one apart."""

    @property
    def reference(self) -> str:
        """How commands name the version: `NAME@v3`."""
        return f"{self.dataset}@v{self.version}"


def write_export_manifest(manifest: ExportManifest, folder: Path) -> None:
    """Write the manifest of all that lies in a folder."""
    sealed = manifest.model_copy(update={"sha256": _digest_files(folder)})
    (folder / EXPORT_MANIFEST_FILE).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")


def refuse_foreign(folder: Path) -> None:
    """Raise `InputError` unless a folder is missing, empty, or holds an export just as it was written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    written = _read_digests(folder)
    if written is None:
        foreign = sorted(path.name for path in folder.iterdir())
    else:
        found = _digest_files(folder)
        foreign = sorted(path for path in found.keys() | written.keys() if found.get(path) != written.get(path))
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which is not as an export left it; name another folder")


def _read_digests(folder: Path) -> dict[str, str] | None:
    try:
        return ExportManifest.model_validate_json((folder / EXPORT_MANIFEST_FILE).read_bytes()).sha256
    except (OSError, ValidationError):
        return None


def _digest_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, its manifest apart; of what is no plain file an empty text."""
    entries = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in entries.items() if path.is_symlink() or not path.is_dir()}
    return {
        name: file_sha256(path) if path.is_file() and not path.is_symlink() else ""
        for name, path in files.items()
        if name != EXPORT_MANIFEST_FILE
    }
