"""Versions take turns under equal prompts: no request gets an answer of other weights."""

import random
from pathlib import Path

import numpy as np
import pytest

from malt.config.limits import Limits
from malt.config.roles import Role, RoleSpec
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.config.train import TrainSpec
from malt.llm.client.completers import EVERY_ROLE, make_completer
from malt.llm.client.session import open_session
from malt.llm.provider import embedded
from malt.llm.request import CompletionRequest, Message
from malt.models import gguf
from malt.models.playing import with_weights
from malt.models.publishing import Made, TrainedRole, publish_models
from malt.models.version import ModelVersion
from tests.models.conftest import BASE, DATASET, STAGE

pytest.importorskip("gguf", reason="the extra `train` is not installed")

VERSIONS, SWAPS = embedded.MOST_SERVERS + 1, 100


def publish_variants(tiny: Path, folder: Path, settings: Settings) -> list[ModelVersion]:
    """Publish several versions of one model with different weights."""
    versions = []
    for number in range(VERSIONS):
        place = folder / f"{number}"
        (place / "adapter").mkdir(parents=True)
        (place / "adapter/adapter_config.json").write_text("{}")
        gguf.write_trained(tiny, place / "model.gguf", shaken(number), "tiny")
        trained = TrainedRole(place, "0" * 64, (STAGE,), (), {})
        made = Made("laptop", BASE, DATASET, TrainSpec())
        versions.append(publish_models(made, {Role.GENERATOR: trained}, settings.models_dir))
    return versions


def shaken(seed: int) -> gguf.Change:
    """Return a change that adds noise to weights."""
    noise = np.random.default_rng(seed)
    return lambda _, weights: weights + noise.normal(0, 0.2, weights.shape).astype(np.float32)


def generator(version: ModelVersion) -> RoleSpec:
    """Return the generator played by a version at temperature 0."""
    role = {"model": version.played_as, "temperature": 0, "max_tokens": 8}
    roles = {"generator": role, "verifier": {"model": "embedded"}, "refiner": {"model": "embedded"}}
    spec = RunSpec.model_validate({"name": "s", "questions": {"source": "q.jsonl"}, "roles": roles})
    return with_weights(spec).roles.generator


def ask(model: RoleSpec, settings: Settings, question: str) -> str:
    """Ask the model through the store, as a run does."""
    session = open_session(settings, Limits())
    complete = make_completer(session, [question], EVERY_ROLE)
    request = CompletionRequest(Role.GENERATOR, model, (Message("user", "Name a colour."),), question)
    return session.run(complete(request))[0].text


def test_a_hundred_swaps_give_no_stale_answer(tiny: Path, tmp_path: Path, settings: Settings) -> None:
    models = [generator(version) for version in publish_variants(tiny, tmp_path / "variants", settings)]
    expected = [ask(model, settings, "cold") for model in models]
    assert len(set(expected)) == VERSIONS
    order = random.Random(0)
    chosen = [order.randrange(VERSIONS) for _ in range(SWAPS)]
    said = [ask(models[which], settings, f"q{swap % 7}") for swap, which in enumerate(chosen)]
    assert said == [expected[which] for which in chosen]
    assert len(embedded.servers.running) <= embedded.MOST_SERVERS
