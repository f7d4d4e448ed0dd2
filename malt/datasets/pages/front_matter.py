"""The YAML block at the head of a card: every config with its files and features, as the Hub and `datasets` read it."""

import json
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from malt.datasets.manifest import Manifest
from malt.datasets.rows.tables import ROLE_FILES, SCHEMAS
from malt.questions.screening import SPLITS, Split

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
"""The Hub's size categories, from fewer than a thousand rows up, each ten times the one before."""

FEATURES = {pa.bool_(): "bool", pa.int64(): "int64", pa.float64(): "float64", pa.string(): "string"}
"""The types of columns as `datasets` calls them."""


def front_matter(manifest: Manifest) -> str:
    """Write the block."""
    configs = config_files()
    return "\n".join(
        [
            "---",
            f"pretty_name: {json.dumps(f'{manifest.name} v{manifest.version}')}",
            f"license: {manifest.spec.dataset.license}",
            "task_categories:\n- text-generation",
            f"size_categories:\n- {size_category(rows_of(manifest, ROLE_FILES))}",
            "tags:\n- malt\n- synthetic\n- sft\n- dpo\n- trl",
            "configs:",
            *(config_entry(manifest, config, listed(manifest, files)) for config, files in configs.items()),
            "dataset_info:",
            *(info_entry(config, files["train"]) for config, files in configs.items()),
            "---",
        ]
    )


def config_files() -> dict[str, dict[Split, str]]:
    """The files of each config that `load_dataset` finds, by split: `sft-generator` … `trajectories`, `questions`."""
    found: dict[str, dict[Split, str]] = {}
    for path in SCHEMAS:
        file = ROLE_FILES.get(path)
        config, split = (file.config, file.split) if file else (path.removesuffix(".parquet"), SPLITS[0])
        found.setdefault(config, {})[split] = path
    return found


def listed(manifest: Manifest, files: Mapping[Split, str]) -> dict[Split, str]:
    """The splits that are told of: train, and validation where it has rows, since `datasets` loads no empty one."""
    return {split: path for split, path in files.items() if split == "train" or rows_of(manifest, [path])}


def rows_of(manifest: Manifest, paths: Iterable[str]) -> int:
    """How many rows some files have together."""
    return sum(manifest.files[path].rows or 0 for path in paths)


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows."""
    return SIZES[min(max(len(str(rows)) - 3, 0), len(SIZES) - 1)]


def config_entry(manifest: Manifest, config: str, files: Mapping[Split, str]) -> str:
    """Write one config. Its description holds the rows' digest because `datasets` keys its cache by this block alone.

    Without it, two folders both called `v1` would load each other's rows from the cache.
    """
    entries = [manifest.files[path] for path in files.values()]
    described = ", ".join(f"{entry.rows} rows, sha256 {entry.rows_sha256}" for entry in entries)
    data_files = "\n".join(f"  - split: {split}\n    path: {path}" for split, path in files.items())
    return f"- config_name: {config}\n  description: {described}\n  data_files:\n{data_files}"


def info_entry(config: str, path: str) -> str:
    """Write one config's features; no splits: `datasets` wants their size in memory, and the rows are told above."""
    features = "\n".join(features_of(SCHEMAS[path], "  "))
    return f"- config_name: {config}\n  features:\n{features}"


def features_of(fields: Iterable[pa.Field], indent: str) -> Iterator[str]:
    """Write columns as `datasets` names their types."""
    for field in fields:
        yield f"{indent}- name: {field.name}"
        if not pa.types.is_list(field.type):
            yield f"{indent}  dtype: {FEATURES[field.type]}"
        elif pa.types.is_struct(field.type.value_type):
            yield f"{indent}  list:"
            yield from features_of(field.type.value_type, f"{indent}  ")
        else:
            yield f"{indent}  list: {FEATURES[field.type.value_type]}"
