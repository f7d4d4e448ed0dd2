"""What lies beside exported rows: a README for people and `load_dataset`, and the settings that a tool reads."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby

from malt.datasets.export.export_manifest import ExportedFile, Receipt
from malt.sanitize import code_span, markdown_table

README_FILE = "README.md"

LLAMAFACTORY_COLUMNS: Mapping[str, Mapping[str, object]] = {
    "sft": {"columns": {"messages": "conversations"}},
    "dpo": {"ranking": True, "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
    "kto": {"columns": {"messages": "conversations", "kto_tag": "kto_tag"}},
}

AXOLOTL_TRAINER: Mapping[str, Sequence[str]] = {
    "sft": [],
    "dpo": ["rl: dpo"],
    "kto": ["rl: kto", "remove_unused_columns: false"],
}
AXOLOTL_DATASET: Mapping[str, Sequence[str]] = {
    "sft": ["type: chat_template", "field_messages: messages", "message_field_training: train"],
    "dpo": [
        "type: chat_template.default",
        "field_messages: messages",
        "field_chosen: chosen",
        "field_rejected: rejected",
    ],
    "kto": ["type: chatml.argilla_chat  # or llama3.argilla_chat: the tokens that your model was trained with"],
}


def readme(receipt: Receipt, use: str) -> str:
    """Write the README; its front matter makes `load_dataset(folder, config)` work."""
    rows = [(code_span(file.config), file.split, code_span(file.path), file.rows) for file in receipt.files]
    return f"""{front_matter(receipt)}
# {receipt.dataset} v{receipt.version} as {receipt.format}

Exported from `{receipt.reference}`, whose rows have the digest `{receipt.content_sha256}`. Paths are from this folder.

{use}

{markdown_table(("config", "split", "file", "rows"), rows)}
"""


def front_matter(receipt: Receipt) -> str:
    """Write the YAML block that names every config."""
    configs = [config_entry(receipt, config, list(files)) for config, files in by_config(receipt)]
    return "\n".join(["---", "tags:", "- malt", "configs:", *configs, "---"])


def config_entry(receipt: Receipt, config: str, files: Sequence[ExportedFile]) -> str:
    """Write one config. Its description names the rows because `datasets` keys its cache by this block alone."""
    rows = sum(file.rows for file in files)
    splits = [f"  - split: {file.split}\n    path: {file.path}" for file in files]
    return "\n".join(
        [
            f"- config_name: {config}",
            f"  description: {rows} rows of {receipt.reference}, content_sha256 {receipt.content_sha256}",
            "  data_files:",
            *splits,
        ]
    )


def by_config(receipt: Receipt) -> "groupby[str, ExportedFile]":
    """A config's files, one a split, config after config."""
    return groupby(receipt.files, key=lambda file: file.config)


def axolotl_configs(receipt: Receipt) -> dict[str, str]:
    """Write a config for every kind and role, to be put into one's own."""
    return {f"{config}.yaml": axolotl_config(receipt, list(files)) for config, files in by_config(receipt)}


def axolotl_config(receipt: Receipt, files: Sequence[ExportedFile]) -> str:
    """Write one: the trainer, and a dataset for each split."""
    lists = {"train": "datasets", "validation": "test_datasets"}
    lines = [f"# {receipt.reference}: add this to an Axolotl config, and run it in this folder.", *trainer_of(files)]
    for file in files:
        settings = [f"path: {file.path}", "ds_type: json", "split: train", *AXOLOTL_DATASET[file.kind]]
        lines += [f"{lists[file.split]}:", f"  - {settings[0]}", *(f"    {setting}" for setting in settings[1:])]
    return "\n".join(lines) + "\n"


def trainer_of(files: Sequence[ExportedFile]) -> Sequence[str]:
    """The settings that say how to train."""
    return AXOLOTL_TRAINER[files[0].kind]


def llamafactory_info(receipt: Receipt) -> dict[str, str]:
    """Write `dataset_info.json`: an entry for every file, such as `arith-dpo-verifier-validation`."""
    entries = {
        f"{receipt.dataset}-{file.config}{'' if file.split == 'train' else f'-{file.split}'}": {
            "file_name": file.path,
            "formatting": "sharegpt",
            **LLAMAFACTORY_COLUMNS[file.kind],
        }
        for file in receipt.files
    }
    return {"dataset_info.json": json.dumps(entries, indent=2) + "\n"}
