"""Lengths of prompts and texts, and their statistics."""

import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.roles import Role
from malt.config.spec import DatasetSpec
from malt.datasets.rows.examples import Candidate, Labelled
from malt.datasets.rows.selection import (
    Selected,
    SelectionCount,
    estimate_tokens,
    measure_lengths,
    quantile,
    summarise_lengths,
    token_counter,
)
from malt.errors import ConfigError
from malt.trees.credit import Length, Value
from malt.trees.tree import Address
from tests.strategies import node_of, tree_of, valued


def words_tokenizer(path: Path) -> str:
    """Write a tokenizer of whole words; return its path."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_without_a_tokenizer_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert token_counter(DatasetSpec())(text) == tokens


def test_a_tokenizer_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    file = words_tokenizer(tmp_path / "tokenizer.json")
    for name in (file, str(tmp_path)):
        assert token_counter(DatasetSpec(tokenizer=name))("so it is four") == 4


def test_an_invalid_tokenizer_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        token_counter(DatasetSpec(tokenizer=str(tmp_path)))


def test_a_missing_tokenizer_file_is_not_looked_up_on_the_hub() -> None:
    with pytest.raises(ConfigError, match=r"dataset.tokenizer = 'none\.json' cannot be loaded \(No such file"):
        token_counter(DatasetSpec(tokenizer="none.json"))


def test_a_node_s_lengths_are_those_of_its_prompt_and_text() -> None:
    told = measure_lengths(valued(tree_of("q1"), [1] * 27), estimate_tokens)
    for address, node in told.tree.nodes.items():
        prompt = sum(estimate_tokens(message.content) for message in node.prompt)
        assert told.lengths[address] == (prompt, estimate_tokens(node.text))


@given(st.lists(st.integers(0, 50), min_size=1))
def test_lengths_are_told_as_statistics_knows_them(lengths: list[int]) -> None:
    told = summarise_lengths(Counter(lengths))
    assert (told.rows, told.longest, told.median) == (len(lengths), max(lengths), statistics.median_low(lengths))
    assert told.mean == round(statistics.fmean(lengths), 1)
    assert sum(length <= told.p95 for length in lengths) >= 0.95 * len(lengths)
    assert told.p95 in lengths


def test_the_lengths_of_no_texts_are_zero() -> None:
    assert quantile({}, 0.5) == 0
    assert (summarise_lengths(Counter()).mean, summarise_lengths(Counter()).longest) == (0, 0)


def pair_of(chosen: int, rejected: int) -> Candidate:
    """Return a pair of refinements with these numbers of characters."""
    texts = ((Address((0, 0, 0)), "a" * chosen, True), (Address((0, 0, 1)), "b" * rejected, False))
    return Candidate(
        tuple(
            Labelled(node_of("q1", address), text, Value(float(is_right), 1), is_right, True, Length(0, 0))
            for address, text, is_right in texts
        )
    )


def test_the_bias_says_how_far_lengths_tell_chosen_from_rejected() -> None:
    pairs = [pair_of(*lengths) for lengths in [(10, 4), (10, 6), (5, 5), (1, 9)]]
    count = SelectionCount()
    count.add(Role.REFINER, {"dpo": Selected(len(pairs), pairs, {})})
    told = count.length_bias[Role.REFINER]
    assert (told.pairs, told.chosen_longer, told.chosen_shorter) == (4, 2, 1)
    assert (told.chosen_characters, told.rejected_characters) == (6.5, 6.0)
