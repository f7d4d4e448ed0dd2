"""Export of a version's rows in another tool's format, to a folder that appears whole or not at all."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from malt.config.roles import PLAYERS, Role
from malt.datasets.export.formats import FORMATS, STEPWISE, Format, source_file
from malt.datasets.export.tool_files import (
    EXPORT_MANIFEST_FILE,
    ExportedFile,
    ExportManifest,
    refuse_foreign,
    render_readme,
    write_export_manifest,
)
from malt.datasets.manifest import CARD_FILE
from malt.datasets.rows.tables import KINDS
from malt.datasets.version.dataset_version import DatasetVersion
from malt.datasets.version.folders import discard, refuse_in_versions, staging_in, sync, sync_tree, temporary_name
from malt.errors import InputError, NothingToExport
from malt.questions.screening import SPLITS, Split


class RowChoice(NamedTuple):
    """Rows to export; an empty field stands for all."""

    roles: Collection[Role] = ()
    kinds: Collection[str] = ()
    splits: Collection[Split] = ()


class Exported(NamedTuple):
    """Folder of an export, its manifest, and warnings about what its tool will reject."""

    path: Path
    manifest: ExportManifest
    warnings: Sequence[str]

    def as_json(self) -> JsonValue:
        """Return the export as JSON; `version` is a reference, `empty` lists the files not written for lack of rows."""
        about = self.manifest.model_dump(mode="json", include={"format", "content_sha256", "files", "empty"})
        return {"version": self.manifest.reference, "dir": str(self.path), **about, "warnings": [*self.warnings]}


def export(version: DatasetVersion, to: str, directory: Path, choice: RowChoice | None = None) -> Exported:
    """Write a version in a format of `FORMATS` to a folder, which must be new, empty, or an earlier export's.

    Equal versions give equal bytes. Raises `InputError`, `VersionError` where the version cannot be read, and
    `NothingToExport` where there is no row.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to}: no such format; there are: {', '.join(FORMATS)}")
    form = FORMATS[to]
    files = _list_files(version, to, form, choice or RowChoice())
    target = _check_place(directory)
    with staging_in(target.parent, 0o777) as staging:  # exports may be shared: the umask decides
        manifest = _manifest_of(version, to, [_write_file(version, form, file, staging) for file in files])
        sizes = [(file, (staging / file.path).stat().st_size) for file in manifest.files]
        warnings = [warning for file, size in sizes for warning in form.warnings(file, size)]
        for name, text in {**form.beside(manifest), CARD_FILE: render_readme(manifest, form.use)}.items():
            (staging / name).write_text(text, encoding="utf-8")
        write_export_manifest(manifest, staging)
        _move(staging, target)
    return Exported(target, manifest, warnings)


def _list_files(version: DatasetVersion, to: str, form: Format, wanted: RowChoice) -> list[ExportedFile]:
    """Return the files to write, in order. Raises `InputError` where the format does not take the wanted rows."""
    _refuse_choice(to, form, wanted)
    files = [
        ExportedFile(path=_name_file(form, kind, role, split), kind=kind, role=role, split=split)
        for kind in form.writers
        if kind in (wanted.kinds or form.writers)
        for role in _roles_of(kind, wanted)
        for split in SPLITS
        if split in (wanted.splits or SPLITS)
    ]
    return [file for file in files if file.role is None or source_file(file) in version.manifest.files]


def _refuse_choice(to: str, form: Format, wanted: RowChoice) -> None:
    for kind in wanted.kinds:
        if kind not in form.writers:
            raise InputError(f"--kind {kind}: {to} takes {', '.join(form.writers)}")
    if wanted.roles and STEPWISE in form.writers:
        raise InputError(f"--role {next(iter(wanted.roles))}: a row of {to} holds all three roles; leave --role out")


def _roles_of(kind: str, wanted: RowChoice) -> Sequence[Role | None]:
    """Return the roles wanted of a kind, in their order; None stands for all where a row holds all of them."""
    return [role for role in PLAYERS if role in (wanted.roles or PLAYERS)] if kind in KINDS else [None]


def _name_file(form: Format, kind: str, role: Role | None, split: Split) -> str:
    name = "".join([role or kind, "" if split == "train" else f".{split}", form.suffix])
    return f"{kind}/{name}" if len(form.writers) > 1 else name


def _check_place(directory: Path) -> Path:
    """Return the resolved folder of the export. Raises `InputError` where it cannot or should not be written."""
    try:
        if directory.expanduser().is_symlink():
            raise InputError(f"{directory} is a link; name the folder that it leads to")
        target = directory.expanduser().resolve()
        if Path.cwd().is_relative_to(target):
            raise InputError(f"{directory} is or contains the current folder; name a folder below it")
        refuse_in_versions(target)
        refuse_foreign(target)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{str(directory)[:60]} cannot be a folder: {str(error)[:60]}") from error
    _make_folder(target.parent)
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there: {error.strerror}") from error


def _write_file(version: DatasetVersion, form: Format, file: ExportedFile, staging: Path) -> ExportedFile:
    """Write one file; remove it, and its folder if that is empty, where there are no rows."""
    path = staging / file.path
    path.parent.mkdir(exist_ok=True)
    written = form.writers[file.kind](version, file, path)
    if not written.rows:
        path.unlink()
        with suppress(OSError):  # not empty
            path.parent.rmdir()
    return written


def _manifest_of(version: DatasetVersion, to: str, files: Sequence[ExportedFile]) -> ExportManifest:
    """Return the export's manifest. Raises `NothingToExport` where no file has rows."""
    if not (present := [file for file in files if file.rows]):
        paths = ", ".join(file.path for file in files) or "that split"
        why = f"its card tells what was left out: {version.path / CARD_FILE}"
        raise NothingToExport(f"{version.reference} has no rows for {to} ({paths}); {why}")
    return ExportManifest(
        format=to,
        dataset=version.name,
        version=version.number,
        content_sha256=version.manifest.content_sha256,
        files=tuple(present),
        empty=tuple(file for file in files if not file.rows),
    )


def _move(staging: Path, target: Path) -> None:
    """Move a finished folder to its place; replace an earlier export, unless it is the same.

    A crash between the two renames leaves no folder; the version still has all of the rows. Raises `InputError` where
    another process wrote there meanwhile.
    """
    sync_tree(staging)
    refuse_foreign(target)
    earlier = target / EXPORT_MANIFEST_FILE
    if earlier.exists() and earlier.read_bytes() == (staging / EXPORT_MANIFEST_FILE).read_bytes():
        return
    former = temporary_name(target.parent)
    try:
        if target.exists():
            target.rename(former)
        staging.rename(target)
    except OSError as error:
        if former.exists() and not target.exists():
            former.rename(target)
        raise InputError(f"{target}: the export cannot be moved there: {error.strerror}") from error
    discard(former)
    sync(target.parent)
