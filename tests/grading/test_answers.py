"""Rules for reading the final answer; test_graders.py grades the tables of cases."""

import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.grading.answers import final_answer, normalised, read_number, unmarked_formula
from malt.grading.choices import read_choice
from malt.grading.numbers import equal, parse_quantity

CHOICES = ("doctor", "bookstore", "market", "train station", "mortuary")

MARKS: tuple[Callable[[str], str], ...] = (
    lambda value: f"Final Answer: {value}",
    lambda value: f"**Final Answer:** {value}.",
    lambda value: f"## Final Answer\n\n{value}",
    lambda value: f"so $\\boxed{{{value}}}$",
    lambda value: f"#### {value}",
    lambda value: f"The answer is {value}.",
    lambda value: f"**Answer:** {value}",
)


def grouped(number: int, separator: str) -> str:
    return f"{number:,}".replace(",", separator)


NOTATIONS: tuple[Callable[[int], str], ...] = (
    str,
    lambda n: grouped(n, ","),
    lambda n: grouped(n, " "),
    lambda n: grouped(n, "{,}"),
    lambda n: grouped(n, "\\,"),
    lambda n: f"{n}.00",
    lambda n: f"${grouped(n, ',')}",
    lambda n: f"\\${n}",
    lambda n: f"£{n}.0",
    lambda n: f"{n} dollars per day",
    lambda n: f"{n}%",
    lambda n: f"**{n}**",
    lambda n: f"\\( {n} \\)",
    lambda n: f"${n}$",
    lambda n: f"\\boxed{{{n}}}",
    lambda n: f"\\text{{{n}}}",
    lambda n: f"x = {n}",
    lambda n: f"about {n}",
    lambda n: f"{2 * n}/2",
    lambda n: f"\\frac{{{2 * n}}}{{2}}",
    lambda n: f"{n}e0",
    lambda n: f"{n * 10}e-1",
    lambda n: f"{n} \\times 10^{{0}}",
    lambda n: f"0.{n:03d} \u00d7 10^{max(3, len(str(n)))}" if n >= 0 else str(n),
    lambda n: f"-{-n}" if n < 0 else f"+{n}",
    lambda n: f"−{-n}" if n < 0 else str(n),  # noqa: RUF001 - the typographic minus is the case
)


@given(st.integers(0, 10**9), st.sampled_from(NOTATIONS), st.sampled_from(MARKS))
def test_a_number_equals_itself_in_every_supported_notation(
    number: int, notation: Callable[[int], str], mark: Callable[[str], str]
) -> None:
    read = read_number(mark(notation(number)))
    target = parse_quantity(str(number))
    assert read is not None
    assert read.quantity is not None
    assert target is not None
    assert equal(read.quantity, target)


@given(st.integers(-(10**6), -1), st.sampled_from(("{}", "−{}", "$-{}$", "-${}", "(-{})", "x = -{}")))  # noqa: RUF001
def test_a_negative_number_keeps_its_sign(number: int, notation: str) -> None:
    read = read_number("Final Answer: " + notation.format(number if notation == "{}" else -number))
    assert read is not None
    assert read.quantity is not None
    assert read.quantity.value == number


@given(st.integers(1, 999), st.integers(1, 99), st.integers(2, 99))
def test_fractions_and_mixed_numbers_are_exact(whole: int, part: int, parts: int) -> None:
    for written in (f"{whole} {part}/{parts}", f"{whole}\\frac{{{part}}}{{{parts}}}"):
        quantity = parse_quantity(written)
        assert quantity is not None
        assert quantity.value == whole + Fraction(part, parts)


@given(st.text(), st.integers(-1000, 1000), st.sampled_from(MARKS[:5]), st.sampled_from(MARKS), st.integers(0, 10))
def test_text_before_the_last_marked_answer_is_ignored(
    before: str,
    number: int,
    mark: Callable[[str], str],
    earlier: Callable[[str], str],
    decoy: int,
) -> None:
    last = "\n" + mark(str(number))
    text = f"{earlier(str(decoy))}\n{before}{last}"
    assert read_number(text) == read_number(last)
    assert final_answer(text) == final_answer(last)


@given(st.text(), st.sampled_from("ABCDE"), st.sampled_from(MARKS[:4]), st.sampled_from("ABCDE"))
def test_text_before_the_last_marked_letter_is_ignored(
    before: str, letter: str, mark: Callable[[str], str], decoy: str
) -> None:
    last = "\n" + mark(letter)
    read = read_choice(f"Final Answer: {decoy}\n{before}{last}", CHOICES)
    assert read is not None
    assert read.letter == letter


@given(st.text(alphabet=st.sampled_from("Final Answer:\\boxed{}#$ 0123456789.,/-+*^%()[]=\nAB")))
def test_no_text_made_of_marks_and_numbers_raises(text: str) -> None:
    number, choice, answer = read_number(text), read_choice(text, CHOICES), final_answer(text)
    assert number is None or number.answer
    assert choice is None or choice.letter is None or choice.letter in "ABCDE"
    assert answer != ""
    parse_quantity(text)


@given(st.text())
def test_no_text_raises(text: str) -> None:
    number, choice = read_number(text), read_choice(text, ())
    assert number is None or number.answer
    assert choice is None or choice.letter is None or choice.letter in "ABCDEFGHIJ"
    assert normalised(text) == normalised(text).strip()


HOSTILE = {
    "brackets": "(" * 200_000,
    "open boxes": "\\boxed{" * 30_000,
    "one box of braces": "\\boxed{" + "{}" * 100_000,
    "empty marks": "Final Answer:" * 20_000,
    "empty headings": "Final Answer:\n" * 15_000,
    "prose marks": "the answer is " * 15_000,
    "hashes": "####" * 50_000,
    "headings": "#### a\n" * 30_000,
    "digits": "Final Answer: " + "9" * 200_000,
    "groups": "1,23," * 40_000,
    "spaced groups": "1 000 " * 33_000,
    "fractions": "1/" * 100_000,
    "mixed numbers": "1 and " * 33_000,
    "LaTeX fractions": "\\frac{" * 33_000,
    "exponents": "1e" * 100_000,
    "dollars": "$" * 200_000,
    "signs": "-" * 200_000,
    "equations": "=" * 200_000,
    "number words": "one hundred " * 16_000,
    "letters": "A " * 100_000,
    "blank lines": " \n" * 100_000,
    "stars": "Final Answer: " + "*" * 200_000,
    "letters that grow": "\u0130" * 100_000 + "Final Answer: 5",
    "listed letters": "A) or " * 33_000,
    "denied letters": "not A, B or " * 16_000,
    "open square brackets": "[" * 200_000,
    "open formulas": "(1)\\" * 50_000,
    "open displays": "1\\[" * 60_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_200_kb_text_is_read_in_linear_time(name: str) -> None:
    started = time.process_time()
    read_number(HOSTILE[name])
    read_choice(HOSTILE[name], CHOICES)
    final_answer(HOSTILE[name])
    unmarked_formula(HOSTILE[name])
    assert time.process_time() - started < 3
