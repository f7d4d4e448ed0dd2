"""What an exported folder says of itself: `export.json`, by which a later export knows that it may take its place."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from malt.config.spec import Role
from malt.errors import InputError
from malt.questions.screening import Split

RECEIPT_FILE = "export.json"


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


class Receipt(BaseModel):
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


def write_receipt(receipt: Receipt, folder: Path) -> None:
    """Write the receipt of all that lies in a folder."""
    sealed = receipt.model_copy(update={"sha256": digests(folder)})
    (folder / RECEIPT_FILE).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")


def refuse_foreign(folder: Path) -> None:
    """Raise `InputError` unless a folder is missing, empty, or holds an export just as it was written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    written = written_digests(folder)
    if written is None:
        foreign = sorted(path.name for path in folder.iterdir())
    else:
        found = digests(folder)
        foreign = sorted(path for path in found.keys() | written.keys() if found.get(path) != written.get(path))
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which is not as an export left it; name another folder")


def written_digests(folder: Path) -> dict[str, str] | None:
    """The digests in a folder's receipt, or None where it has none."""
    try:
        return Receipt.model_validate_json((folder / RECEIPT_FILE).read_bytes()).sha256
    except (OSError, ValidationError):
        return None


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, its receipt apart; of what is no plain file, nothing is known."""
    entries = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in entries.items() if path.is_symlink() or not path.is_dir()}
    return {name: sha256_of(path) for name, path in files.items() if name != RECEIPT_FILE}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a plain file, and of anything else an empty text, which no file has."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
