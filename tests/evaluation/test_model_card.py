"""Evaluation results in a model's card on the Hub; the model version itself does not change."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from malt.cli.main import exit_code
from malt.config.roles import Role
from malt.evaluation.card import find_results, percent, render_model_card
from malt.evaluation.evaluate import evaluate
from malt.evaluation.version import EvaluationVersion
from malt.models.version import ModelVersion
from tests.evaluation.planted import QUESTIONS, planted_spec
from tests.hub import OWNER, Hub
from tests.hub import hub as hub
from tests.models.conftest import Publish, publish
from tests.providers import ScriptedProvider

__all__ = ["publish"]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # raised in Hugging Face's library

ID = f"{OWNER}/laptop"
SYSTEMS = '[evaluate.systems.plain]\n[evaluate.systems.trained]\nrefiner = {{ model = "openai/{}" }}\n'


@pytest.fixture
def model(publish: Publish) -> ModelVersion:
    return publish()


@pytest.fixture
def evaluation(tmp_path: Path, model: ModelVersion, provider: ScriptedProvider) -> EvaluationVersion:
    """Evaluation whose second system plays the model's refiner, named as a server that loaded its adapter names it."""
    systems = SYSTEMS.format(model.adapter_name(Role.REFINER))
    return evaluate(planted_spec(tmp_path, provider, systems))


def test_results_are_those_of_systems_that_have_the_model(model: ModelVersion, evaluation: EvaluationVersion) -> None:
    found = {(result.system, result.measure): result.cell for result in find_results(model)}
    summary = evaluation.summary.systems["trained"]
    assert found == {("trained", "ma"): summary.ma, ("trained", "ma_mv"): summary.ma_mv}


def test_show_tells_results(
    model: ModelVersion, evaluation: EvaluationVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["show", model.reference]) == 0
    shown = percent(evaluation.summary.systems["trained"].ma_mv)
    assert f"evaluations/planted@v1, trained, pipeline, vote of 3: {shown} % right" in capsys.readouterr().out


def test_other_weights_have_no_results(publish: Publish, evaluation: EvaluationVersion) -> None:
    assert evaluation.number == 1
    assert find_results(publish("two")) == []


def test_the_card_has_a_model_index_as_the_hub_reads_it(model: ModelVersion, evaluation: EvaluationVersion) -> None:
    text = render_model_card(model, find_results(model))
    data = ModelCard(text).data
    _, voted = data["eval_results"]
    assert "model-index:\n- name: laptop\n" in text
    assert (voted.dataset_name, voted.dataset_revision) == ("heldout.jsonl", evaluation.manifest.questions.sha256)
    assert (voted.metric_type, voted.metric_args["questions"]) == ("accuracy", QUESTIONS)
    assert voted.metric_name == "trained: pipeline, vote of 3 (evaluations/planted@v1)"
    assert voted.metric_value == pytest.approx(evaluation.summary.systems["trained"].ma_mv.accuracy, abs=1e-4)
    assert "| `evaluations/planted@v1` | `trained` | pipeline, vote of 3 |" in text
    assert "## Training" in text


def pushed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert exit_code(["push", "models/laptop", f"hf://{ID}", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_push_tells_results_on_main_and_the_tag_keeps_the_version(
    model: ModelVersion, evaluation: EvaluationVersion, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    done, repository = pushed(capsys), hub.repositories[ID]
    assert (done["commit"], done["card"]) == (repository.tags["v1"], repository.branches["main"])
    own = (model.path / "README.md").read_bytes()
    assert repository.files("v1")["README.md"].content == own
    assert b"model-index" in repository.files("main")["README.md"].content
    assert evaluation.reference.encode() in repository.files("main")["README.md"].content
    again = pushed(capsys)
    assert (again["sent"], again["card"], len(repository.commits)) == (0, done["card"], 3)


def test_a_later_evaluation_is_added_to_the_card_by_the_next_push(
    model: ModelVersion, hub: Hub, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    assert pushed(capsys)["card"] is None
    request.getfixturevalue("evaluation")
    assert pushed(capsys)["card"] == hub.repositories[ID].branches["main"] != hub.repositories[ID].tags["v1"]
    assert model.number == 1


def test_a_newer_version_takes_main_with_its_own_card(
    publish: Publish, evaluation: EvaluationVersion, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(capsys)["card"] is not None
    newer = publish("two")
    assert (pushed(capsys)["card"], evaluation.number) == (None, 1)
    assert hub.repositories[ID].files("main")["README.md"].content == (newer.path / "README.md").read_bytes()
    assert exit_code(["push", "models/laptop@v1", f"hf://{ID}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"] is None
