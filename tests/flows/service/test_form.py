"""The form of a deployment: its fields, the input that it refuses, and that no key is ever recorded."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from malt.config.loader import load_spec
from malt.config.spec import RunSpec
from tests.configs import write_config
from tests.flows.service.conftest import PROJECT, SECRET, Formed, Json, Prefect
from tests.providers import ScriptedProvider


def fields(schema: Json, model: str) -> dict[str, Json]:
    properties: dict[str, Json] = schema["definitions"][model]["properties"]
    return dict(sorted(properties.items(), key=lambda field: int(field[1]["position"])))


def test_the_form_has_groups_in_the_order_of_a_config_and_a_description_for_every_field(prefect: Prefect) -> None:
    schema = prefect.deployment("generate")["parameter_openapi_schema"]
    assert list(fields(schema, "RunSpec"))[:6] == ["name", "questions", "prompts", "model", "roles", "evaluator"]
    assert list(fields(schema, "RoleSpec"))[:4] == ["model", "samples", "temperature", "max_tokens"]
    for model, group in schema["definitions"].items():
        if "properties" in group:
            assert group["description"]
            for name, field in fields(schema, model).items():
                assert field["title"] == name
                assert "$ref" in field or field["description"]


def test_choices_are_drop_downs(prefect: Prefect) -> None:
    schema = prefect.deployment("generate")["parameter_openapi_schema"]
    assert fields(schema, "RunOptions")["tracking"]["enum"] == ["auto", "branch", "question", "shard"]
    several, one = fields(schema, "EvaluatorSpec")["kind"]["anyOf"]
    assert several["items"]["enum"] == one["enum"] == ["llm", "exact", "contains", "number", "math", "choice", "python"]
    rerun = prefect.deployment("rerun")["parameter_openapi_schema"]
    assert rerun["definitions"]["Role"]["enum"] == ["generator", "verifier", "refiner", "evaluator"]
    assert all(field["description"] for field in rerun["properties"].values())


@pytest.mark.parametrize("flow", ["generate", "assemble"])
def test_the_form_is_filled_with_the_quickstart(prefect: Prefect, flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    default = prefect.deployment(flow)["parameters"]["spec"]
    assert RunSpec.model_validate(default) == load_spec(Path("configs/quickstart.toml"))


@pytest.mark.parametrize(
    ("changes", "named_field"),
    [
        ({"questions": {}}, "source"),
        ({"credit": {"threshold": 1.5}}, "credit.threshold"),
        ({"run": {"tracking": "leaf"}}, "run.tracking"),
        ({"roles": {"verifier": {"samples": "many"}}}, "roles.verifier.samples"),
        ({"roles": {"refiner": {"temprature": 1}}}, "temprature"),
    ],
)
def test_bad_input_is_refused_by_field_before_a_run_begins(prefect: Prefect, changes: Json, named_field: str) -> None:
    default = prefect.deployment("generate")["parameters"]["spec"]
    answer = prefect.trigger("generate", spec={**default, **changes})
    assert answer.status_code == 409
    assert named_field in answer.text


@pytest.mark.parametrize(
    "role",
    [
        {"extra": {"api_key": "hush"}},
        {"extra": {"headers": {"Authorization": "hush"}}},
        {"extra": {"user": SECRET}},
        {"api_key_env": SECRET},
        {"api_key_block": SECRET},
        {"api_base": "https://me:hush@models.example/v1"},
    ],
)
def test_a_key_in_the_form_is_refused_and_not_recorded(prefect: Prefect, role: Json) -> None:
    default = prefect.deployment("generate")["parameters"]["spec"]
    answer = prefect.trigger("generate", spec={**default, "roles": {"generator": role}})
    assert answer.status_code == 409
    assert not find_in_records(prefect, b"hush", SECRET.encode())


def test_the_form_declares_the_same_spec_as_a_config_and_its_run_has_tags(prefect: Prefect, formed: Formed) -> None:
    version = prefect.newest("formed")
    assert version.spec == formed.spec
    assert json.loads((version.path / "manifest.json").read_text())["config"] == formed.spec.as_config()
    models = [f"model:openai/{role}-model" for role in ("generator", "refiner", "verifier")]
    assert sorted(formed.run["tags"]) == ["dataset:formed", "grader:number", "malt", *models]


@pytest.mark.usefixtures("formed")
def test_a_key_from_a_block_is_recorded_in_no_file(prefect: Prefect) -> None:
    assert not find_in_records(prefect, SECRET.encode())
    assert SECRET not in (prefect.newest("formed").path / "manifest.json").read_text()


def find_in_records(prefect: Prefect, *secrets: bytes) -> list[str]:
    """Return the files below the data folder that contain a secret: databases, journals, logs, datasets."""
    files = [path for path in prefect.service.data_dir.rglob("*") if path.is_file() and "ui" not in path.parts]
    return [str(path) for path in files if any(secret in content(path) for secret in secrets)]


def content(path: Path) -> bytes:
    """Return a file's content; empty where the file has just been removed, as journals are."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def test_the_short_form_takes_a_config_file_and_overrides(
    prefect: Prefect, provider: ScriptedProvider, tmp_path: Path
) -> None:
    config = write_config(tmp_path, provider, 3)
    schema = prefect.deployment("from-config")["parameter_openapi_schema"]
    in_order = sorted(schema["properties"], key=lambda name: int(schema["properties"][name]["position"]))
    assert in_order == ["config", "questions", "model", "api_base", "samples", "grader", "limit", "overrides"]
    assert all(field["description"] for field in schema["properties"].values())
    changes = {"limit": 2, "samples": 1, "grader": ["exact"], "overrides": ["credit.threshold=0.25"]}
    ended = prefect.run("from-config", config=str(config), **changes)
    assert ended["state"]["message"] == "sums@v1: 2 questions complete"
    spec = prefect.newest("sums").spec
    assert (spec.credit.threshold, spec.evaluator.kind, spec.roles.refiner.samples) == (0.25, ("exact",), 1)
    assert provider.request_count == 2 * 3


@pytest.mark.parametrize(
    "override", [f"roles.generator.extra.user={SECRET}", "roles.generator.extra.api_key=hush", "credit.threshold"]
)
def test_an_override_that_contains_a_key_or_is_malformed_is_refused_and_not_recorded(
    prefect: Prefect, override: str
) -> None:
    assert prefect.trigger("from-config", overrides=[override]).status_code == 409
    assert not find_in_records(prefect, b"hush", SECRET.encode())
