"""Secrets in a config are refused in a spec, in a file, and by the schema that validates the form in Prefect's UI."""

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import JsonValue, ValidationError

from malt.config.roles import ModelSpec
from malt.config.secret_scan import redact
from malt.config.spec import RunSpec

KEY = "sk-ant-0123456789abcdefghij"
SECRET: list[dict[str, JsonValue]] = [
    {"extra": {"api_key": "hush"}},
    {"extra": {"API-Key": "hush"}},
    {"extra": {"headers": {"Authorization": "hush"}}},
    {"extra": {"list": [{"token": "hush"}]}},
    {"extra": {"user": KEY}},
    {"extra": {"header": "Bearer hushhushhush"}},
    {"api_key_env": KEY},
    {"api_key_env": "gsk_0123456789abcdefghij"},
    {"api_key_block": KEY},
    {"api_key_block": "Not A Name"},
    {"api_base": "https://me:hush@models.example/v1"},
    {"api_base": "https://hush@models.example/v1"},
    {"api_base": "https://models.example/v1?subscription-key=hush"},
    {"api_base": "https://models.example/v1?code=hush"},
    {"api_base": "https://models.example/v1?v=1&sig=hush"},
    {"extra": {"user": "ghp_hush0123456789abcdefghij0123456789"}},
    {"extra": {"user": "glpat-hush0123456789abcdefghij"}},
    {"extra": {"user": "xoxb-012345678901-hushhushhush"}},
    {"extra": {"user": "nvapi-hush0123456789abcdefghij0123"}},
    {"extra": {"user": "eyJhbGciOiJIUzI1NiJ9.eyJodXNoIjoiMSJ9.hush"}},
    {"extra": {"user": "-----BEGIN RSA PRIVATE KEY-----hush"}},
    {"extra": {"headers": {"X-A": "Basic aHVzaDpodXNoMQ=="}}},
]
SECRET += [
    {"extra": {"extra_headers": {name: "hush"}}}
    for name in (
        *("Cookie", "X-Auth-Token", "PRIVATE-TOKEN", "X-API-Token", "Ocp-Apim-Subscription-Key", "X-Functions-Key"),
        *("Proxy-Authorization", "X-Token", "X-Vault-Token", "X-CSRF-Token", "X-Amz-Signature", "Set-Cookie"),
    )
]
SECRET += [
    {"extra": {name: "hush"}}
    for name in (
        *("azure_ad_token", "aws_session_token", "aws_access_key_id", "session_token", "refresh_token", "bot_token"),
        *("oauth_token", "github_token"),
    )
]
HARMLESS: list[dict[str, JsonValue]] = [
    {"extra": {"max_completion_tokens": 5, "stop": ["\n"], "nested": {"top_k": 3}}},
    {"api_key_env": "MY_KEY"},
    {"api_key_block": "my-key"},
    {"api_base": "http://127.0.0.1:8000/v1"},
    {"api_base": "https://models.example/v1?api-version=2024-10-21"},
    {"api_base": "https://models.example/v1?zip_code=1"},
    {"extra": {"cookie_policy": "none", "user": "Basic arithmetic"}},
    {"extra": {"pad_token": "x", "max_id_tokens": 3, "valid_token": "y", "user": "Basic understanding of keys"}},
]


def declared(role: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {"name": "sums", "questions": {"source": "q.jsonl"}, "roles": {"generator": role}}


@pytest.mark.parametrize("role", SECRET)
def test_a_secret_is_refused_without_being_shown(role: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate(declared(role))
    said = "; ".join(error["msg"] for error in refused.value.errors())
    assert "roles.generator." in said
    assert "hush" not in said
    assert KEY not in said


@pytest.mark.parametrize("role", SECRET)
def test_the_schema_of_the_form_refuses_a_secret_too(role: dict[str, JsonValue]) -> None:
    assert not Draft202012Validator(RunSpec.model_json_schema()).is_valid(declared(role))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://me:hu/sh@h/x", "http://[key]@h/x"),
        ("no answer from http://me:hu@sh@h", "no answer from http://[key]@h"),
        ("http://127.0.0.1:8000/models/x@v1", "http://127.0.0.1:8000/models/x@v1"),
        ("Basic understanding", "Basic understanding"),
    ],
)
def test_credentials_are_removed_from_addresses(said: str, shown: str) -> None:
    assert redact(said) == shown


@pytest.mark.parametrize("role", HARMLESS)
def test_a_harmless_role_passes_both(role: dict[str, JsonValue]) -> None:
    assert Draft202012Validator(RunSpec.model_json_schema()).is_valid(declared(role))
    RunSpec.model_validate(declared(role))


def test_a_key_is_in_one_place() -> None:
    with pytest.raises(ValidationError, match="set one of them"):
        ModelSpec(api_key_env="MY_KEY", api_key_block="my-key")


def test_blocks_are_replaced_by_the_variables_that_hold_their_keys() -> None:
    spec = RunSpec.model_validate(declared({"api_key_block": "my-key"}))
    assert spec.key_blocks == {"my-key"}
    keyed = spec.with_keys_from({"my-key": "MALT_KEY_MY_KEY"})
    assert (keyed.roles.generator.api_key_env, keyed.roles.generator.api_key_block) == ("MALT_KEY_MY_KEY", None)
    assert keyed.roles.verifier == spec.roles.verifier
