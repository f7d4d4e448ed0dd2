"""Files beside exported rows: README, settings that a tool reads, and `export.json`, the manifest of the export."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from malt.canonical_json import file_sha256
from malt.config.roles import Role
from malt.datasets.version.folders import list_entries
from malt.errors import InputError
from malt.files import MIB, read_regular_file
from malt.questions.screening import Split
from malt.sanitize import code_span, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData


EXPORT_MANIFEST_FILE = "export.json"
_MOST_BYTES = 64 * MIB
"""Largest manifest of an earlier export that is read."""


class ExportedFile(BaseModel):
    """One file of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Path below the export's folder."""
    kind: str
    role: Role | None
    """Role whose rows these are; None where a row holds all roles."""
    split: Split
    rows: int = 0
    left_out: dict[str, int] = {}
    """Number of the version's paths that the format does not take, by reason."""

    @property
    def config(self) -> str:
        """Config name of the file for `load_dataset`: `sft-generator`, `prm`."""
        return self.kind if self.role is None else f"{self.kind}-{self.role}"


class ExportManifest(BaseModel):
    """Version and files of an export, and the digest of every file beside this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    dataset: str
    version: int
    content_sha256: str
    files: tuple[ExportedFile, ...]
    empty: tuple[ExportedFile, ...]
    """Files that were not written because they would have no row: no tool loads such a file."""
    sha256: dict[str, str] = {}
    """Digest of every other file of the folder, by its path."""

    @property
    def reference(self) -> str:
        """The version's name in commands: `NAME@v3`."""
        return f"{self.dataset}@v{self.version}"


def write_export_manifest(manifest: ExportManifest, folder: Path) -> None:
    sealed = manifest.model_copy(update={"sha256": _digest_files(folder)})
    (folder / EXPORT_MANIFEST_FILE).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")


def refuse_foreign(folder: Path) -> None:
    """Raise `InputError` unless a folder is missing, empty, or holds an unchanged export."""
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
        raise InputError(f"{folder} holds {foreign[0]}, which no export wrote or which changed; name another folder")


def _read_digests(folder: Path) -> dict[str, str] | None:
    with suppress(OSError, ValidationError):
        written = read_regular_file(folder.absolute() / EXPORT_MANIFEST_FILE, _MOST_BYTES)
        return ExportManifest.model_validate_json(written).sha256
    return None


def _digest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder except the manifest; for a link or special file an empty text."""
    return {
        name: file_sha256(folder / name) if is_plain else ""
        for name, is_plain in list_entries(folder).items()
        if name != EXPORT_MANIFEST_FILE
    }


_LLAMAFACTORY_COLUMNS: Mapping[str, Mapping[str, object]] = {
    "sft": {"columns": {"messages": "conversations"}},
    "dpo": {"ranking": True, "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
    "kto": {"columns": {"messages": "conversations", "kto_tag": "kto_tag"}},
}

_AXOLOTL_TRAINER: Mapping[str, Sequence[str]] = {
    "sft": [],
    "dpo": ["rl: dpo"],
    "kto": ["rl: kto", "remove_unused_columns: false"],
}
_AXOLOTL_DATASET: Mapping[str, Sequence[str]] = {
    "sft": ["type: chat_template", "field_messages: messages", "message_field_training: train"],
    "dpo": [
        "type: chat_template.default",
        "field_messages: messages",
        "field_chosen: chosen",
        "field_rejected: rejected",
    ],
    "kto": ["type: chatml.argilla_chat  # or llama3.argilla_chat: the tokens that your model was trained with"],
}


def render_readme(manifest: ExportManifest, use: str) -> str:
    """Return the README; its front matter makes `load_dataset(folder, config)` work."""
    rows = [(code_span(file.config), file.split, code_span(file.path), file.rows) for file in manifest.files]
    return f"""---
{_card_data(manifest)}
---
# {manifest.dataset} v{manifest.version} as {manifest.format}

Exported from `{manifest.reference}`, whose rows have the digest `{manifest.content_sha256}`. Paths are from this
folder.

{use}

{markdown_table(("config", "split", "file", "rows"), rows)}
"""


def _card_data(manifest: ExportManifest) -> "DatasetCardData":
    """List every config. Descriptions hold the rows' digest because `datasets` keys its cache by this block alone."""
    from huggingface_hub import DatasetCardData

    rows = {config: sum(file.rows for file in files) for config, files in _by_config(manifest)}
    configs = [
        {
            "config_name": config,
            "description": f"{rows[config]} rows of {manifest.reference}, content_sha256 {manifest.content_sha256}",
            "data_files": [{"split": file.split, "path": file.path} for file in files],
        }
        for config, files in _by_config(manifest)
    ]
    return DatasetCardData(tags=["malt"], configs=configs)


def _by_config(manifest: ExportManifest) -> "groupby[str, ExportedFile]":
    return groupby(manifest.files, key=lambda file: file.config)


def axolotl_configs(manifest: ExportManifest) -> dict[str, str]:
    """Return part of an Axolotl config for every kind and role, by file name."""
    return {f"{config}.yaml": _axolotl_config(manifest, list(files)) for config, files in _by_config(manifest)}


def _axolotl_config(manifest: ExportManifest, files: Sequence[ExportedFile]) -> str:
    lists = {"train": "datasets", "validation": "test_datasets"}
    lines = [
        f"# {manifest.reference}: add this to an Axolotl config, and run it in this folder.",
        *_AXOLOTL_TRAINER[files[0].kind],
    ]
    for file in files:
        settings = [f"path: {file.path}", "ds_type: json", "split: train", *_AXOLOTL_DATASET[file.kind]]
        lines += [f"{lists[file.split]}:", f"  - {settings[0]}", *(f"    {setting}" for setting in settings[1:])]
    return "\n".join(lines) + "\n"


def llamafactory_info(manifest: ExportManifest) -> dict[str, str]:
    """Return `dataset_info.json`: an entry for every file, such as `arith-dpo-verifier-validation`."""
    entries = {
        f"{manifest.dataset}-{file.config}{'' if file.split == 'train' else f'-{file.split}'}": {
            "file_name": file.path,
            "formatting": "sharegpt",
            **_LLAMAFACTORY_COLUMNS[file.kind],
        }
        for file in manifest.files
    }
    return {"dataset_info.json": json.dumps(entries, indent=2) + "\n"}
