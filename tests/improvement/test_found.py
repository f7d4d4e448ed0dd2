"""Finding a round's version again: it has the same inputs, and is complete or was already built upon."""

import asyncio
from pathlib import Path

import pytest

from malt.config.evaluate import SystemSpec
from malt.config.loader import load_spec
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.config.train import TrainSpec
from malt.datasets.version.dataset_version import DatasetVersion, open_version
from malt.engine.job import read_job
from malt.engine.runner import run_job
from malt.errors import ConfigError
from malt.evaluation.evaluate import evaluate
from malt.evaluation.job import read_evaluation
from malt.improvement.found import find_dataset, find_evaluation
from malt.improvement.improve import check
from malt.improvement.rounds import closing_spec, comparing_spec, growing_spec, list_players
from malt.models.publishing import Made, TrainedRole, publish_models
from malt.models.version import DatasetEntry
from tests import mishaps
from tests.improvement.sevens import write_config
from tests.models.conftest import BASE, STAGE, Publish
from tests.models.conftest import publish as publish
from tests.providers import ScriptedProvider


@pytest.fixture
def spec(tmp_path: Path, provider: ScriptedProvider) -> RunSpec:
    return load_spec(write_config(tmp_path, provider, tmp_path / "none.gguf", "thresholds = [0.5, 0.7]"))


def grown(spec: RunSpec) -> DatasetVersion:
    summary = asyncio.run(run_job(read_job(spec)))
    return open_version(summary.reference)


def test_a_version_is_found_by_what_makes_its_trees(spec: RunSpec, tmp_path: Path) -> None:
    assert find_dataset(read_job(spec)) is None
    made = grown(spec)
    assert find_dataset(read_job(spec)) == made
    later = spec.model_copy(update={"train": TrainSpec.model_validate({"refiner": ["dpo"]}), "limits": spec.limits})
    assert find_dataset(read_job(later)) == made
    second = growing_spec(spec, 2, None, in_vain=1)
    assert find_dataset(read_job(second)) is None
    assert grown(second).number == 2
    assert find_dataset(read_job(spec)) == made
    questions = tmp_path / "train.jsonl"
    questions.write_text(questions.read_text().replace("7 + 3", "3 + 7"))
    assert find_dataset(read_job(spec)) is None


def test_trees_with_failed_branches_are_found_once_something_was_trained_on_them(
    spec: RunSpec, provider: ScriptedProvider, settings: Settings, tmp_path: Path
) -> None:
    provider.faults = lambda asked: mishaps.bad_request() if "7 + 2" in asked.prompt else None
    lacking = grown(spec)
    assert lacking.manifest.failures
    assert find_dataset(read_job(spec)) is None
    (tmp_path / "w/adapter").mkdir(parents=True)
    (tmp_path / "w/adapter/adapter_config.json").write_text("{}")
    entry = DatasetEntry(name=lacking.name, version=1, content_sha256=lacking.manifest.content_sha256)
    trained = TrainedRole(tmp_path / "w", "0" * 64, (STAGE,), (), {})
    publish_models(Made("sevens", BASE, entry, TrainSpec()), {Role.REFINER: trained}, settings.models_dir)
    assert find_dataset(read_job(spec)) == lacking


def test_an_evaluation_is_found_by_its_models_and_questions(spec: RunSpec, tmp_path: Path) -> None:
    compared = comparing_spec(spec, {"current": SystemSpec(), "candidate": SystemSpec()}, "current")
    made = evaluate(compared)
    found = find_evaluation(read_evaluation(compared))
    assert found is not None
    assert found.path == made.path
    assert find_evaluation(read_evaluation(comparing_spec(spec, {"other": SystemSpec()}, "other"))) is None
    assert find_evaluation(read_evaluation(comparing_spec(compared, {"current": SystemSpec()}, "current"))) is None
    questions = tmp_path / "heldout.jsonl"
    questions.write_text("".join(questions.read_text().splitlines(keepends=True)[1:]))
    assert find_evaluation(read_evaluation(compared)) is None


def test_a_round_is_grown_by_the_best_with_its_own_threshold(spec: RunSpec, publish: Publish) -> None:
    publish("one")
    first = growing_spec(spec, 1, None, 0)
    assert (first.roles, first.credit.threshold) == (spec.roles, 0.5)
    third = growing_spec(spec, 3, "laptop@v1", 0)
    models = [third.roles[role].model for role in (Role.GENERATOR, Role.VERIFIER, Role.REFINER)]
    assert models == ["laptop@v1", "openai/verifier", "laptop@v1"]
    assert third.credit.threshold == 0.7
    assert [growing_spec(spec, 3, None, in_vain).roles.generator.seed for in_vain in (0, 1, 2)] == [7, 8, 9]


def test_at_the_end_each_trained_role_is_untrained_in_its_turn(spec: RunSpec, publish: Publish) -> None:
    publish("one")
    closing = closing_spec(spec, SystemSpec(models="laptop@v1"), list_players("laptop@v1")).evaluate
    assert closing is not None
    assert [*closing.systems] == ["untrained", "trained", "generator-untrained", "refiner-untrained"]
    assert [*closing.systems["generator-untrained"].model_dump(exclude_none=True)] == ["refiner", "roles"]
    assert closing.baseline == "trained"


def test_a_config_that_cannot_be_improved_is_refused_before_any_request(
    spec: RunSpec, provider: ScriptedProvider, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.gguf"):
        check(spec, settings)
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    remote = spec.model_copy(update={"train": TrainSpec(base="some/model")})
    with pytest.raises(ConfigError, match="base = 'some/model' gives adapters for a server of your own"):
        check(remote, settings)
    with pytest.raises(ConfigError, match=r"the config has no \[evaluate\]"):
        check(spec.model_copy(update={"evaluate": None}), settings)
    later = spec.model_copy(update={"evaluate": comparing_spec(spec, {"x": SystemSpec(models="s@v9")}, "x").evaluate})
    check(later, settings)  # the rounds choose the systems to compare
    assert provider.request_count == 0
