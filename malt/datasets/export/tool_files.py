"""What lies beside exported rows: a README for people and `load_dataset`, and the settings that a tool reads."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from malt.datasets.export.export_manifest import ExportedFile, ExportManifest
from malt.sanitize import code_span, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

README_FILE = "README.md"

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
    """Write the README; its front matter makes `load_dataset(folder, config)` work."""
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
    """Name every config. Their descriptions name the rows because `datasets` keys its cache by this block alone."""
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
    """Write a config for every kind and role, to be put into one's own."""
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
    """Write `dataset_info.json`: an entry for every file, such as `arith-dpo-verifier-validation`."""
    entries = {
        f"{manifest.dataset}-{file.config}{'' if file.split == 'train' else f'-{file.split}'}": {
            "file_name": file.path,
            "formatting": "sharegpt",
            **_LLAMAFACTORY_COLUMNS[file.kind],
        }
        for file in manifest.files
    }
    return {"dataset_info.json": json.dumps(entries, indent=2) + "\n"}
