"""What a version is trained with: `[train]` of a config, or of the config that the dataset was declared with."""

from collections.abc import Sequence
from pathlib import Path

from malt.config.loader import load_spec, override_spec
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion


def declared(version: DatasetVersion, config: Path | None, overrides: Sequence[str] = ()) -> TrainSpec:
    """Return how to train a version. Raises `ConfigError` for a config or an override that is wrong."""
    if config is not None:
        return load_spec(config, overrides).train
    return override_spec(version.spec, overrides, version.path).train
