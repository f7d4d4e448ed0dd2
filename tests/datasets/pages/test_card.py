"""The dataset card: its content, and that every config it names loads."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from malt.config.spec import RunSpec
from malt.datasets.pages.card import config_files, render_card
from malt.datasets.rows.tables import SCHEMAS
from malt.datasets.version.dataset_version import DatasetVersion
from tests.published import PROVENANCE, publish, publish_questions, spec_of
from tests.strategies import tree_of, valued

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load_dataset(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Hugging Face's `load_dataset` with a separate cache."""
    return partial(pytest.importorskip("datasets").load_dataset, cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return publish_questions(["q1", "q2"], tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def all_wrong(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version without supervised rows and pairs."""
    folder = tmp_path_factory.mktemp("datasets")
    return publish([valued(tree_of("q1"), [0] * 27)], spec_of(), PROVENANCE, folder)


@pytest.mark.parametrize("config", [config for config in config_files() if config != "dpo-generator"])
def test_every_config_loads_with_its_rows(load_dataset: Load, mixed: DatasetVersion, config: str) -> None:
    loaded = load_dataset(str(mixed.path), config, split="train")
    file = config_files()[config]["train"]
    assert loaded.num_rows == mixed.manifest.files[file].rows
    assert loaded.column_names == SCHEMAS[file].names


@pytest.mark.parametrize("config", config_files())
def test_every_config_streams_with_the_same_features_also_without_rows(
    load_dataset: Load, mixed: DatasetVersion, all_wrong: DatasetVersion, config: str
) -> None:
    some, few = (load_dataset(str(each.path), config, split="train", streaming=True) for each in (mixed, all_wrong))
    assert some.features == few.features
    assert len(list(few)) == all_wrong.manifest.files[config_files()[config]["train"]].rows


def test_loading_needs_no_warning(load_dataset: Load, mixed: DatasetVersion, caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("datasets")
    library.addHandler(caplog.handler)
    load_dataset(str(mixed.path), "sft-refiner", split="train")
    library.removeHandler(caplog.handler)
    assert not caplog.messages


def test_versions_of_one_folder_name_do_not_share_the_library_s_cache(
    load_dataset: Load, mixed: DatasetVersion, all_wrong: DatasetVersion
) -> None:
    assert mixed.path.name == all_wrong.path.name == "v1"
    assert load_dataset(str(mixed.path), "kto-generator", split="train").num_rows == 6
    assert load_dataset(str(all_wrong.path), "kto-generator", split="train").num_rows == 3


def test_the_card_tells_of_the_run(mixed: DatasetVersion) -> None:
    card = (mixed.path / "README.md").read_text(encoding="utf-8")
    assert "# arith v1" in card
    assert "2 questions from `questions.jsonl`; 2 have a complete tree." in card
    assert "Leaves: 26 correct, 2 unknown, 26 incorrect; graded by: llm." in card
    assert "| verifier | embedded | 3 | 0.3 | 18 | 10 | 8 | 0 | 684 | $0.0180 |" in card
    assert "| `dpo-generator` | `dpo/generator.parquet`, `dpo/generator.validation.parquet` | 0 | 0 |" in card
    assert "| `dpo/generator` | 4 | 0 | 4 generator_dpo |" in card
    assert "| leaves | 26 of 52 correct (50.0 %), 2 unknown |" in card


def test_a_model_s_name_cannot_break_the_card_s_table(mixed: DatasetVersion) -> None:
    config = spec_of().as_config()
    config["roles"]["verifier"]["model"] = "odd|name"
    RunSpec.model_validate(config)
    assert "| verifier | odd&#124;name | 3 |" in render_card(mixed.manifest.model_copy(update={"config": config}))


def test_an_unknown_cost_is_called_unknown(mixed: DatasetVersion) -> None:
    cost = {**mixed.manifest.cost, "refiner": mixed.manifest.cost["refiner"].model_copy(update={"cost_usd": None})}
    assert "| unknown |" in render_card(mixed.manifest.model_copy(update={"cost": cost}))
