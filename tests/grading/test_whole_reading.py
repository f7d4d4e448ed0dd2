"""No false rewards: an answer that is only partly read, or differs in one place, is never right."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planted import REFERENCES, RIGHT, WRONG, planted
from malt.grading.answers import normalised, read_number, without_stop_tokens
from malt.grading.choices import read_choice
from malt.grading.mathematics.reader import read_math
from malt.grading.mathematics.tokens import Unread
from malt.grading.mathematics.worker import compare_math
from malt.grading.numbers import equal, parse_quantity
from malt.grading.words import number_in_words

EXPRESSIONS = st.sampled_from(
    ["5", "-3", "\\frac{1}{2}", "2\\sqrt{3}", "3\\pi", "x+1", "x^2-4x+4", "\\frac{x+1}{x-2}", "2^n-1", "\\ln 2", "ab"]
)
SYMBOLS = st.sampled_from(["q", "w", "z", "\\lambda", "Q"])
PLACES = st.sampled_from(
    ["{e}{s}", "{s}{e}", "{e}+{s}", "{e}-{s}", "\\frac{{{e}}}{{{s}}}", "{e}^{s}", "({e})({s})", "{e}\\sqrt{{{s}}}"]
)


def verdict(reference: str, answer: str) -> str:
    return compare_math(reference, answer, "What is it?").result


@given(EXPRESSIONS, SYMBOLS, PLACES)
@settings(deadline=None)
def test_a_symbol_that_the_reference_has_not_is_never_right(expression: str, symbol: str, place: str) -> None:
    assert verdict(expression, place.format(e=expression, s=symbol)) in ("different", "unread")


@given(
    st.decimals(min_value=-(10**6), max_value=10**6, places=4, allow_nan=False), st.integers(0, 12), st.integers(1, 9)
)
@settings(deadline=None)
def test_a_number_with_one_digit_changed_is_never_right(number: object, place: int, step: int) -> None:
    written = f"{number:f}"
    digits = [index for index, sign in enumerate(written) if sign.isdigit()]
    index = digits[place % len(digits)]
    changed = written[:index] + str((int(written[index]) + step) % 10) + written[index + 1 :]
    assert verdict(written, changed) == "different"
    read, target = read_number(f"Final Answer: {changed}"), parse_quantity(written)
    assert read is None or read.quantity is None or target is None or not equal(read.quantity, target)


@given(st.integers(-400, 400).filter(bool), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_tiny_and_huge_numbers_compare_by_their_figures(power: int, one: int, other: int) -> None:
    result = verdict(f"{one} \\times 10^{{{power}}}", f"{other}\\cdot 10^{{{power}}}")
    assert result == ("equal" if one == other else "different")


MATHEMATICS = [line for line in REFERENCES.read_text("utf-8").splitlines() if "\\text" not in line]
FURTHER = [
    " \\text{ to } 7",
    " \\text{ or } 977",
    " \\text{ less than } 7",
    " \\text{ not}",
    " \\# 3",
    "\\foo",
    " \\pm 3",
    "(",
]


@given(st.sampled_from(MATHEMATICS), st.sampled_from(FURTHER))
@settings(deadline=None)
def test_text_after_an_answer_is_never_dropped(reference: str, rest: str) -> None:
    assert verdict(reference, reference + rest) in ("different", "unread")


@given(st.integers(1, 99), st.integers(2, 60), st.sampled_from("xyt"))
@settings(deadline=None)
def test_a_notation_and_its_plain_text_agree(one: int, other: int, symbol: str) -> None:
    pairs = [
        (rf"{one}\sqrt{{{other}}}", f"{one}*sqrt({other})"),
        (rf"{one}\sqrt{{{other}}}", f"{one}√{other}"),
        (rf"{one}\pi", f"{one}*pi"),
        (rf"\frac{{{one}{symbol}}}{{{other}}}", f"{one}*{symbol}/{other}"),
        (rf"{symbol}^{{{other}}}+{one}", f"{symbol}**{other} + {one}"),
        (rf"\ln {one}", f"ln({one})"),
        (rf"e^{{{one}{symbol}}}", f"exp({one}{symbol})"),
        (rf"|{symbol}-{one}|", f"abs({symbol}-{one})"),
        (rf"[{one},\infty)", f"[{one}, ∞)"),
        (rf"\left(\frac{{{one}}}{{{other}}}, {symbol}\right)", f"({one}/{other}, {symbol})"),
        (rf"{symbol} \geq {one}", f"{symbol} ≥ {one}"),
    ]
    assert {verdict(reference, answer) for reference, answer in pairs} == {"equal"}


@given(st.integers(0, 10**12 - 1))
def test_a_number_in_words_is_read_whole(number: int) -> None:
    assert number_in_words(spelled(number)) == number
    assert number_in_words(f"{spelled(number)} or so") is None


def spelled(number: int) -> str:
    """Write a number in English words."""
    ones = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ]
    tens = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
    if number < 20:
        return ones[number]
    if number < 100:
        return tens[number // 10] + (f"-{ones[number % 10]}" if number % 10 else "")
    scales = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
    size, name = next(scale for scale in scales if number >= scale[0])
    rest = f" {spelled(number % size)}" if number % size else ""
    return f"{spelled(number // size)} {name}{rest}"


@given(st.integers(1, 10**9), st.sampled_from([".", ",", " ", "'"]), st.integers(0, 99))
def test_separators_of_thousands_are_read_whole_or_not_at_all(number: int, separator: str, cents: int) -> None:
    grouped = f"{number:,}".replace(",", separator)
    written = f"{grouped}{',' if separator in '. ' else '.'}{cents:02}"
    read = read_number(f"Final Answer: {written}")
    assert read is not None
    assert read.quantity is None or float(read.quantity.value) == pytest.approx(number + cents / 100)


@given(
    st.sampled_from("ABCD"),
    st.sampled_from("ABCD"),
    st.sampled_from([" or ", " and ", "/", ", ", " (or ", ", maybe ", " & "]),
)
def test_two_letters_choose_nothing(one: str, other: str, joined: str) -> None:
    read = read_choice(f"Final Answer: {one}{joined}{other}", ("copper", "bronze", "silver", "gold"))
    assert read is not None
    assert read.letter == (one if one == other else None)


@given(st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), max_size=40), st.sampled_from(
    ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "[/INST]", "<eos>"]
))  # fmt: skip
def test_a_stop_token_is_left_out_and_nothing_else(text: str, token: str) -> None:
    assert without_stop_tokens(text + token) == text.rstrip()
    assert without_stop_tokens(text) == text
    assert normalised(without_stop_tokens(text + token)) == normalised(text)


SIGNS = "0123456789xyin+-*/^_(){}[]\\,.=<>|!%$ √π²"


@given(
    st.lists(st.sampled_from([*SIGNS, "\\frac", "\\sqrt", "\\text{ and }", "\\sin", "\\cup", "\\infty"]), max_size=30)
)
@settings(deadline=None)
def test_no_text_is_read_with_another_error_than_unread(signs: list[str]) -> None:
    with suppress(Unread):
        assert read_math("".join(signs))


def test_no_planted_wrong_answer_is_graded_right_and_hardly_any_right_one_is_missed() -> None:
    judged = [(each, verdict(each.reference, each.answer)) for each in planted(wrong_each=6, right_each=3)]
    assert {each.edit for each, _ in judged} <= {*WRONG, *RIGHT}
    assert [each for each, result in judged if not each.is_right and result == "equal"] == []
    missed = [each for each, result in judged if each.is_right and result != "equal"]
    assert len(missed) < len(judged) / 100, missed
