"""Models that play roles are identified by the digest of their weights."""

from pathlib import Path

import pytest

from malt.canonical_json import file_sha256
from malt.config.roles import Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.errors import ConfigError
from malt.llm.request import CompletionRequest, Message
from malt.models.playing import with_weights
from tests.models.conftest import Publish


def spec_of(model: str, **more: object) -> RunSpec:
    role = {"model": model, **more}
    roles = {"generator": role, "verifier": {"model": "embedded"}, "refiner": {"model": "embedded"}}
    return RunSpec.model_validate({"name": "sums", "questions": {"source": "q.jsonl"}, "roles": roles})


def keys_of(spec: RunSpec) -> list[str]:
    """Return the keys of one request to the generator."""
    asked = (Message("user", "How many?"),)
    return CompletionRequest(Role.GENERATOR, spec.roles.generator, asked, "q1").keys


def test_a_version_is_asked_by_its_role_and_known_by_its_weights(publish: Publish) -> None:
    version = publish()
    known = with_weights(spec_of("laptop@v1")).roles.generator
    assert known.model == "laptop@v1/generator"
    assert known.weights == file_sha256(version.weights(Role.GENERATOR))
    assert with_weights(spec_of("models/laptop@latest")).roles.generator == known
    assert with_weights(spec_of("laptop@v1/refiner")).roles.generator.weights == file_sha256(
        version.weights(Role.REFINER)
    )
    assert with_weights(with_weights(spec_of("laptop@v1"))) == with_weights(spec_of("laptop@v1"))


def test_other_weights_under_one_name_share_no_key_and_the_same_under_two_names_do(
    publish: Publish, tmp_path: Path
) -> None:
    publish()
    publish("two")
    publish("one", name="copied")
    keys = {name: keys_of(with_weights(spec_of(name)))[0] for name in ("laptop@v1", "laptop@v2", "copied@v1")}
    assert keys["laptop@v1"] == keys["copied@v1"] != keys["laptop@v2"]
    file = tmp_path / "mine.gguf"
    before = [
        keys_of(with_weights(spec_of(f"embedded/{file}")))
        for content in (b"GGUF 1", b"GGUF 2")
        if file.write_bytes(content)
    ]
    assert before[0] != before[1]


def test_a_model_not_identified_by_its_weights_keeps_its_key() -> None:
    spec = spec_of("embedded")
    assert with_weights(spec) is spec
    trained = spec.model_copy(update={"train": spec.train.model_copy(update={"dtype": "float32"})})
    assert keys_of(trained) == keys_of(spec)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("laptop@v9", "model 'laptop@v9': 'laptop' has no version v9|has no version v9"),
        ("laptop@v1/verifier", "has no verifier: it was trained for generator, refiner"),
        ("other@v1", "other"),
    ],
)
def test_a_version_or_role_that_is_not_there_is_refused(publish: Publish, model: str, told: str) -> None:
    publish()
    with pytest.raises(ConfigError, match=told):
        with_weights(spec_of(model))


def test_a_judge_that_is_not_asked_needs_no_weights(publish: Publish) -> None:
    publish()
    one = spec_of("laptop@v1")
    inherited = one.evaluator.model_copy(update={"model": "laptop@v1", "kind": ("number",)})
    assert with_weights(one.model_copy(update={"evaluator": inherited})).evaluator == inherited
    asked = one.model_copy(update={"evaluator": inherited.model_copy(update={"kind": ("llm",)})})
    with pytest.raises(ConfigError, match=r"evaluator\.model or model\.model: model 'laptop@v1': a judge is not"):
        with_weights(asked)


def test_weights_that_were_changed_or_are_others_than_declared_are_refused(publish: Publish) -> None:
    version = publish()
    with pytest.raises(ConfigError, match="is another one now"):
        with_weights(spec_of("laptop@v1", weights="0" * 64))
    version.weights(Role.GENERATOR).write_bytes(b"GGUF swapped")
    with pytest.raises(ConfigError, match="is not the file that was published"):
        with_weights(spec_of("laptop@v1"), Settings())
