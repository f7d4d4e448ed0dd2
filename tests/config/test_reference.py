"""The config reference: it contains every key, and the page in docs/ is the program's output."""

from pathlib import Path

import pytest

from malt.config.reference import explain_key, list_keys, write_markdown
from malt.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "config.md"


def test_the_page_is_what_the_program_writes() -> None:
    assert PAGE.read_text() == write_markdown()


def test_every_key_has_a_meaning_and_a_kind_of_value() -> None:
    keys = list(list_keys())
    assert len(keys) > 100
    assert [key.name for key in keys if not key.meaning or "any value" in key.kind.split(" of ")[0]] == []
    assert {"roles.generator.samples", "evaluator.kind", "evaluate.systems.NAME.generator.model"} <= {
        key.name for key in keys
    }


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("roles.generator.samples", "whole number, from 1, to 64", "3"),
        ("credit.threshold", "number, from 0, below 1", "0.5"),
        ("questions.limit", "whole number or empty, from 1", ""),
        ("run.wait", "true or false", "true"),
        ("dataset.same_answer", "list of generator, verifier, refiner, evaluator", '["refiner"]'),
    ],
)
def test_a_key_is_explained(name: str, kind: str, default: str) -> None:
    (key,) = explain_key(name)
    assert (key.kind, key.default) == (kind, default)
    assert key.meaning in "\n".join(key.lines)


def test_a_table_is_explained_with_its_keys() -> None:
    assert [key.name for key in explain_key("credit")][:2] == ["credit", "credit.threshold"]


def test_an_unknown_key_is_refused_with_similar_ones() -> None:
    with pytest.raises(ConfigError, match=r"smaples: a config has no such key; did you mean roles\.generator\.samples"):
        explain_key("smaples")
