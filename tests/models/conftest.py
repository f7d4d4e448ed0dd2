"""Fixture that publishes model versions with dummy weights, which these tests never load."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.train import TrainSpec
from malt.models.publishing import Made, TrainedRole, publish_models
from malt.models.version import BaseEntry, DatasetEntry, LossPoint, ModelVersion, StageResult

Publish = Callable[..., ModelVersion]

ROLES = ("generator", "refiner")
BASE = BaseEntry(name="embedded", sha256="b" * 64)
DATASET = DatasetEntry(name="sums", version=1, content_sha256="d" * 64)
POINTS = (LossPoint(step=1, loss=2.5), LossPoint(step=2, loss=1.5))
STAGE = StageResult(
    stage="sft", rows=6, trained=5, lost={"longer than max_length": 1}, tokens=200, steps=2,
    loss_first=2.5, loss_last=1.5, losses=POINTS, wall_s=1.0,
)  # fmt: skip


@pytest.fixture
def publish(tmp_path: Path, settings: Settings) -> Publish:
    """Return a function that publishes models with a text in place of weights."""

    def made(
        weights: str = "one", name: str = "laptop", roles: tuple[str, ...] = ("generator", "refiner")
    ) -> ModelVersion:
        trained = {}
        for role in map(Role, roles):
            folder = tmp_path / "trained" / weights / role
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            (folder / "adapter/adapter_model.safetensors").write_text(f"{weights} {role}")
            (folder / "adapter/adapter_config.json").write_text(json.dumps({"r": 16}))
            (folder / "model.gguf").write_bytes(b"GGUF" + f"{weights} {role}".encode())
            trained[role] = TrainedRole(folder, "0" * 64, (STAGE,), (), {"trl": "1.16.0"})
        return publish_models(Made(name, BASE, DATASET, TrainSpec()), trained, settings.models_dir)

    return made
