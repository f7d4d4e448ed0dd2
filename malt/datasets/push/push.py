"""Push of a version to a folder or to any file system that fsspec knows; `hub` pushes to the Hugging Face Hub.

A version is written to `<destination>/<name>/v<N>/`. Its manifest is sent first, as `manifest.json.partial`: it marks
the unfinished files as this version's, so that only a push of the same version resumes them. Renaming it to
`manifest.json` is the last step, and marks the version as complete.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from malt.datasets.manifest import MANIFEST_FILE
from malt.datasets.push.files import Bundle, BundledFile, Pushed, bundle_files, push_errors
from malt.datasets.version.folders import refuse_in_versions
from malt.datasets.version.published import Published
from malt.errors import InputError, PushDamaged, PushError
from malt.questions.readers import strip_secrets
from malt.sanitize import fold_lines
from malt.text import list_first

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PARTIAL_FILE = f"{MANIFEST_FILE}.partial"
_OPTIONS: Mapping[str, Mapping[str, bool | int]] = {
    "file": {"auto_mkdir": True},
    "local": {"auto_mkdir": True},
    "s3": {"max_concurrency": 3},  # parts of 50 MB in memory at once
}
"""Options of fsspec's file systems, by scheme."""


def push(version: Published[Any], dest: str, *, public: bool = False, card: str | None = None) -> Pushed:
    """Send a version to the Hub, to an address that fsspec knows, or to a folder, and check it there.

    On the Hub models go to `hf://OWNER/NAME`, all else to `hf://datasets/OWNER/NAME`. There `card`, which may show
    results of later evaluations, replaces `README.md` on `main`; the tag keeps the version as it was published.

    Sends only missing files and overwrites none. A new repository is private unless `public`. Raises `InputError` for
    an invalid destination, `PushError` if it refuses, cannot be reached or holds another version under this name, and
    `PushDamaged` if a file arrived damaged.
    """
    if dest.startswith("hf://"):
        from malt.datasets.push.hub import Repository

        kind = "model" if version.manifest.kind == "models" else "dataset"
        return Repository.named(dest, kind).push(bundle_files(version), public=public, card=card)
    if public:
        raise InputError(f"--public is for hf:// destinations; who may read {strip_secrets(dest)} is set there")
    bundle = bundle_files(version)
    with push_errors(strip_secrets(dest), _explain):
        return _FileSystemPlace.find(dest, bundle).push()


@dataclass(frozen=True)
class _FileSystemPlace:
    """Folder of one version on a file system."""

    bundle: Bundle
    dest: str
    address: str
    """Address for messages, without secrets."""
    files: "AbstractFileSystem"
    root: str
    """Path of the folder on `files`."""

    @classmethod
    def find(cls, dest: str, bundle: Bundle) -> Self:
        """Find a version's folder below a destination, without creating it."""
        from fsspec.core import url_to_fs

        scheme = dest.partition("://")[0] if "://" in dest else "file"
        files, base = url_to_fs(dest, skip_instance_cache=True, **_OPTIONS.get(scheme, {}))
        place = f"{bundle.name}/{bundle.tag}"
        if scheme in ("file", "local"):
            refuse_in_versions(Path(base).resolve())
            _refuse_links(Path(base), Path(base) / place)
        shown = strip_secrets(dest)
        return cls(bundle, shown, f"{shown.rstrip('/')}/{place}", files, f"{base.rstrip('/')}/{place}")

    def push(self) -> Pushed:
        """Send the missing files and check them; then rename the manifest, which marks the version as complete."""
        held = self._list_sizes()
        missing = [file for file in self.bundle.files if not self._holds(file, held)]
        self._refuse_another(missing, held)
        is_whole = self.bundle.manifest not in missing
        if not is_whole:
            self._claim(held)
        for file in missing:
            if file != self.bundle.manifest:
                self._send(file, file.path)
        if not is_whole:
            self.files.mv(f"{self.root}/{PARTIAL_FILE}", f"{self.root}/{MANIFEST_FILE}")
            self._check(self.bundle.manifest, MANIFEST_FILE)
        elif PARTIAL_FILE in held:
            self.files.rm_file(f"{self.root}/{PARTIAL_FILE}")
        return Pushed.of(self.bundle, self.dest, self.address, missing)

    def _list_sizes(self) -> dict[str, int]:
        """Return the sizes of the files in the version's folder, by their paths in it."""
        self.files.invalidate_cache()
        try:
            found = self.files.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(self.root).lstrip("/"): info["size"] for path, info in found.items()}

    def _holds(self, file: BundledFile, held: dict[str, int]) -> bool:
        return held.get(file.path) == file.bytes and self._sha256(file.path) == file.sha256

    def _sha256(self, path: str) -> str:
        with self.files.open(f"{self.root}/{path}", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _refuse_another(self, missing: Sequence[BundledFile], held: dict[str, int]) -> None:
        """Raise `PushError` for any content but what an unfinished push of this version left."""
        others = [file.path for file in missing if file.path in held]
        if PARTIAL_FILE in held and not self._has_claimed():
            raise PushError(
                f"{self.address} holds an unfinished push of another {self.bundle.reference}; nothing was sent. "
                "Let that one end, remove what it left, or push elsewhere"
            )
        if PARTIAL_FILE not in held and others:
            raise PushError(
                f"{self.address} holds other content already ({list_first(others)}); nothing was sent or overwritten. "
                "Push elsewhere, or remove what is there first"
            )

    def _has_claimed(self) -> bool:
        """Whether the partial manifest is this version's. A truncated one also counts: no file was sent after it."""
        claim: bytes = self.files.cat_file(f"{self.root}/{PARTIAL_FILE}")
        return self.bundle.manifest.local.read_bytes().startswith(claim)

    def _claim(self, held: dict[str, int]) -> None:
        if held.get(PARTIAL_FILE) == self.bundle.manifest.bytes:
            return
        try:
            self._send(self.bundle.manifest, PARTIAL_FILE, overwrite=PARTIAL_FILE in held)
        except FileExistsError as error:
            raise PushError(f"{self.address}: another push has just begun there; push again when it is done") from error

    def _send(self, file: BundledFile, path: str, *, overwrite: bool = True) -> None:
        options = {} if overwrite else {"mode": "create"}
        self.files.put_file(str(file.local), f"{self.root}/{path}", **options)
        self._check(file, path)

    def _check(self, file: BundledFile, path: str) -> None:
        arrived = self._sha256(path)
        if arrived != file.sha256:
            raise PushDamaged(
                f"{self.address}/{path} arrived damaged: its SHA-256 is {arrived[:12]}…, not {file.sha256[:12]}…; "
                "push again to send it again"
            )


def _refuse_links(base: Path, root: Path) -> None:
    """Raise `PushError` for a link in a version's folder, or between the destination and it, that would lead files
    elsewhere; and for a pipe or a device, whose reading may never end.
    """
    below = [folder for folder in (root, *root.parents) if base in folder.parents]
    for path in (*below, *root.rglob("*")):
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise PushError(f"{path} is a link, or neither file nor folder; nothing was sent. Remove it first")


def _explain(error: Exception) -> str:
    detail = strip_secrets(fold_lines(str(error)))
    match error:
        case ImportError():
            return f"a package is missing: {detail}"
        case PermissionError():
            return f"no permission ({detail}); a push lists, reads, writes and deletes"
        case FileNotFoundError():
            return f"no such place ({detail}); create the bucket or share first"
    return (
        f"cannot be used ({type(error).__name__}: {detail}); "
        "check the address, credentials and network, then push again: only what is missing is sent"
    )
