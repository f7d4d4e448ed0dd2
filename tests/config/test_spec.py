"""RunSpec: defaults, strict validation, and the settings that shape a completion."""

import json
from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from malt.config.evaluate import PlayerSpec
from malt.config.roles import PLAYERS, ModelSpec, RoleSpec
from malt.config.spec import EvaluatorSpec, RunSpec

SMALLEST = {"name": "sums", "questions": {"source": "sums.jsonl"}}


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


def test_defaults_are_the_papers_three_samples_a_level_and_no_grader() -> None:
    spec = RunSpec.model_validate(SMALLEST)
    assert spec.roles.branching == (3, 3, 3)
    assert spec.credit.threshold == 0.5
    assert spec.evaluator.kind == ()
    assert spec.evaluator.scope == "leaves"
    assert not spec.dataset.generator_dpo


def test_defaults_keep_every_pair_and_label_as_the_paper_does() -> None:
    dataset = RunSpec.model_validate(SMALLEST).dataset
    assert (dataset.min_margin, dataset.min_confidence, dataset.max_pairs_per_question) == (0, 0, None)
    assert dataset.balance == "none"


@pytest.mark.parametrize(
    "dataset",
    [{"min_margin": 1.1}, {"min_margin": -0.1}, {"min_confidence": 2}, {"max_pairs_per_question": 0}, {"balance": "x"}],
)
def test_a_gate_that_cannot_be_is_refused(dataset: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RunSpec.model_validate(SMALLEST | {"dataset": dataset})


def test_a_spec_survives_json() -> None:
    unset = {"generator": {"temperature": None, "max_tokens": None}}
    spec = RunSpec.model_validate(SMALLEST | {"evaluator": {"kind": ["exact", "llm"], "model": "m"}, "roles": unset})
    assert RunSpec.model_validate(json.loads(json.dumps(spec.as_config()))) == spec


def test_a_spec_cannot_be_changed() -> None:
    spec = RunSpec.model_validate(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("model", dict.fromkeys(models(RunSpec)), ids=lambda model: model.__name__)
def test_every_table_refuses_unknown_keys(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"no_such_key": 1})


@pytest.mark.parametrize("model", dict.fromkeys(models(RunSpec)), ids=lambda model: model.__name__)
def test_every_key_explains_itself(model: type[BaseModel]) -> None:
    assert not [name for name, field in model.model_fields.items() if not field.description]


@pytest.mark.parametrize("name", ["", "Sums", "a b", "a/b", "../a", "a_b", "x" * 101])
def test_a_name_is_lower_case_letters_digits_and_hyphens(name: str) -> None:
    with pytest.raises(ValidationError):
        RunSpec.model_validate(SMALLEST | {"name": name})


def test_every_role_has_its_own_model() -> None:
    spec = RunSpec.model_validate(
        SMALLEST
        | {
            "roles": {"generator": {"model": "a"}, "verifier": {"model": "b"}, "refiner": {"model": "c"}},
            "evaluator": {"model": "d"},
        }
    )
    assert [spec.roles[role].model for role in PLAYERS] == ["a", "b", "c"]
    assert spec.evaluator.model == "d"


def test_sampling_holds_what_shapes_the_text_and_nothing_else() -> None:
    model = ModelSpec(model="m", temperature=0.0, seed=0, timeout_s=1, api_base="http://host/v1", api_key_env="KEY")
    assert model.sampling == {"temperature": 0.0, "max_tokens": 1024, "seed": 0}
    assert ModelSpec(temperature=None, max_tokens=None).sampling == {}
    assert ModelSpec(top_p=0.9, extra={"min_p": 0.1}).sampling["extra"] == {"min_p": 0.1}


def test_the_number_of_samples_is_no_part_of_sampling() -> None:
    assert RoleSpec(samples=3).sampling == RoleSpec(samples=4).sampling


def test_one_kind_needs_no_brackets() -> None:
    assert EvaluatorSpec.model_validate({"kind": "exact"}) == EvaluatorSpec(kind=("exact",))


@pytest.mark.parametrize(
    "short",
    [
        {"evaluator": {"kind": "exact"}},
        {"growth": "adaptive"},
        {"roles": {"verifier": {"fallbacks": ["openai/m", {"model": "groq/m"}]}}},
        {"dataset": {"decontaminate": "test.jsonl", "same_answer": "refiner"}},
    ],
)
def test_the_form_accepts_the_short_forms_of_a_config(short: dict[str, object]) -> None:
    RunSpec.model_validate(SMALLEST | short)
    assert [*Draft202012Validator(RunSpec.model_json_schema()).iter_errors(SMALLEST | short)] == []


def test_a_form_wants_a_grader_and_a_spec_survives_without() -> None:
    spec = RunSpec.model_validate(SMALLEST)
    assert not Draft202012Validator(RunSpec.model_json_schema()).is_valid(SMALLEST | {"evaluator": {"kind": []}})
    assert RunSpec.model_validate(spec.as_config()) == spec


@pytest.mark.parametrize("wrong", [{"evaluator": {"kind": "guess"}}, {"growth": "half"}])
def test_form_and_spec_refuse_an_unknown_choice(wrong: dict[str, object]) -> None:
    assert not Draft202012Validator(RunSpec.model_json_schema()).is_valid(SMALLEST | wrong)
    with pytest.raises(ValidationError):
        RunSpec.model_validate(SMALLEST | wrong)


def test_a_judge_is_cooler_than_the_roles() -> None:
    assert (EvaluatorSpec().temperature, RoleSpec().temperature) == (0.1, 0.3)


@pytest.mark.parametrize(
    "evaluator",
    [
        {"kind": "python"},
        {"kind": "exact", "function": "module:function"},
        {"kind": "python", "function": "no colon"},
        {"correctness_weight": 0, "reasoning_weight": 0},
        {"correctness_weight": -1},
    ],
)
def test_an_evaluator_that_cannot_grade_is_refused(evaluator: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluatorSpec.model_validate(evaluator)


@pytest.mark.parametrize(
    ("player", "key"),
    [
        (PlayerSpec(temperature=0.0), "KEY"),
        (PlayerSpec(model="openai/other"), "KEY"),
        (PlayerSpec(api_base="http://host/v1"), "KEY"),
        (PlayerSpec(api_base="http://elsewhere/v1"), None),
        (PlayerSpec(model="openai/other", api_base="http://elsewhere/v1"), None),
        (PlayerSpec(api_base="http://elsewhere/v1", api_key_env="OTHER"), "OTHER"),
        (PlayerSpec(model="groq/other"), None),
    ],
)
def test_a_player_takes_a_role_s_key_to_no_other_address(player: PlayerSpec, key: str | None) -> None:
    role = RoleSpec(model="openai/m", api_base="http://host/v1", api_key_env="KEY")
    assert player.plays(role).api_key_env == key


def test_a_player_s_own_key_takes_the_place_of_a_block() -> None:
    role = RoleSpec(model="openai/m", api_key_block="ours")
    played = PlayerSpec(api_key_env="OTHER").plays(role)
    assert (played.api_key_env, played.api_key_block) == ("OTHER", None)
