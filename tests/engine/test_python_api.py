"""The Python API, `TrainingDataGenerator`, without Prefect."""

import json
from pathlib import Path

import pytest

from malt import LLMEvaluator, TrainingDataGenerator
from malt.config.roles import Role
from malt.datasets.check.verify import verify
from malt.errors import ConfigError, NothingToPublish, QuestionError
from tests import mishaps
from tests.batches import BatchProvider
from tests.batching import batched
from tests.providers import ScriptedProvider
from tests.specs import spec_of, write_questions

DATA = [{"question": f"What is {i} + 10?", "ground_truth": f"{i + 10}"} for i in range(3)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "k")


@pytest.fixture
def generator(provider: ScriptedProvider) -> TrainingDataGenerator:
    return TrainingDataGenerator(
        "openai/m", branching_factor=2, use_llm_eval=False, api_base=provider.url, api_key_env="TEST_KEY", seed=1
    )


async def test_one_tree_is_grown_graded_and_valued(
    generator: TrainingDataGenerator, provider: ScriptedProvider
) -> None:
    valued = await generator.generate_trajectories(**DATA[0])
    assert len(valued.tree.nodes) == 2 + 4 + 8
    assert set(valued.values) == set(valued.tree.nodes)
    assert provider.request_count == 1 + 2 + 4
    assert len(repr(valued)) < 500


async def test_a_dataset_is_made_in_the_folder_that_is_named(generator: TrainingDataGenerator, tmp_path: Path) -> None:
    version = await generator.generate_and_evaluate(DATA, output_dir=tmp_path / "out")
    for role in ("generator", "verifier", "refiner"):
        written = json.loads((tmp_path / "out" / f"{role}_training.json").read_text())
        assert written["metadata"]["total_examples"] == len(written["examples"])
    assert version.path == tmp_path / "out"
    assert len(repr(version)) < 500
    assert version.sft(Role.REFINER).value.tolist() == [1.0] * len(version.sft(Role.REFINER))


async def test_a_second_call_asks_nothing_and_makes_no_new_version(
    generator: TrainingDataGenerator, provider: ScriptedProvider
) -> None:
    first = await generator.generate_and_evaluate(DATA)
    asked = provider.request_count
    again = await generator.generate_and_evaluate(DATA)
    assert (again.number, again.created) == (first.number, False)
    assert provider.request_count == asked


async def test_a_judge_gives_every_leaf_its_score(provider: ScriptedProvider) -> None:
    generator = TrainingDataGenerator("openai/m", 0.5, 2, api_base=provider.url, api_key_env="TEST_KEY")
    valued = await generator.generate_trajectories(**DATA[0])
    leaves = [grade for address, grade in valued.grades.items() if address.is_leaf]
    assert {grade.grader for grade in leaves} == {"llm"}
    assert len({grade.reward for grade in leaves}) > 2


async def test_a_judge_whose_replies_cannot_be_read_makes_a_warning_and_no_latest_version(
    provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.script = lambda _asked, _sample: "I think it is fine."
    generator = TrainingDataGenerator("openai/m", 0.5, 2, api_base=provider.url, api_key_env="TEST_KEY")
    version = await generator.generate_and_evaluate(DATA)
    assert version.manifest.counts.outcomes["unknown"] == 3 * 8
    assert "training-data@v1 is suspicious: the grade of 24 of 24 leaves is unknown" in caplog.text
    assert not (version.path.parent / "latest").exists()


async def test_nothing_complete_is_an_error_that_says_so(
    generator: TrainingDataGenerator, provider: ScriptedProvider
) -> None:
    provider.faults = lambda _asked: mishaps.context_overflow()
    with pytest.raises(NothingToPublish, match="none of 3 questions"):
        await generator.generate_and_evaluate(DATA)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([DATA[0], DATA[0]], r"training_data\[1\].*twice"),
        ([{"question": "", "ground_truth": "1"}], r"training_data\[0\]"),
        ([{"question": "What?", "ground_truth": ""}], r"training_data\[0\]"),
        ([{"question": "What?"}], r"training_data\[0\].*ground_truth"),
        (["What?"], r"training_data\[0\] is 'What\?', not a row"),
        ([], "no rows"),
    ],
)
async def test_unusable_rows_are_found_before_any_request(
    generator: TrainingDataGenerator, provider: ScriptedProvider, rows: list[dict[str, str]], problem: str
) -> None:
    with pytest.raises(QuestionError, match=problem):
        await generator.generate_and_evaluate(rows)
    assert provider.request_count == 0


async def test_a_folder_with_other_files_is_left_alone(generator: TrainingDataGenerator, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(ConfigError, match="holds other files"):
        await generator.generate_and_evaluate(DATA, output_dir=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


async def test_a_version_in_a_named_folder_verifies_and_is_replaced_by_the_next(
    generator: TrainingDataGenerator, tmp_path: Path
) -> None:
    await generator.generate_and_evaluate(DATA[:2], output_dir=tmp_path / "out")
    version = await generator.generate_and_evaluate(DATA, output_dir=tmp_path / "out")
    assert len(version.questions) == 3
    assert verify(version) == []


def test_an_evaluator_that_would_not_be_asked_is_an_error() -> None:
    with pytest.raises(ConfigError, match="use_llm_eval"):
        TrainingDataGenerator("embedded", use_llm_eval=False, evaluator=LLMEvaluator("embedded"))


def test_the_evaluator_that_is_given_is_the_one_declared(provider: ScriptedProvider) -> None:
    judge = LLMEvaluator("openai/judge", api_base=provider.url, api_key_env="TEST_KEY")
    generator = TrainingDataGenerator("openai/m", evaluator=judge, api_base=provider.url, api_key_env="TEST_KEY")
    assert generator.spec.evaluator.model == "openai/judge"


def test_a_missing_key_is_found_at_once(provider: ScriptedProvider) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        TrainingDataGenerator("openai/m", api_base=provider.url, api_key_env="NO_SUCH_KEY")


async def test_trees_are_grown_in_batches_too(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        spec = batched(spec_of(provider, write_questions(tmp_path)))
        version = await TrainingDataGenerator(spec=spec).generate_and_evaluate(DATA)
        assert version.manifest.counts.complete == len(DATA)
        assert len(provider.items) == 13 * len(DATA)
        assert provider.paid.total() == provider.request_count
