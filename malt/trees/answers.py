r"""Reading the final answer from a reply. What was read is stored beside the grade.

A mark says where the answer is. Marks, strong ones first:

1. `Final Answer: x`, on that line or under it as a heading, in Markdown or not;
2. `\boxed{x}`;
3. `#### x`, where x is the text's last line, or a number or letter with nothing else (headings look like it too);
4. `the answer is x`, `Answer: x`, `the final answer is x`.

The last mark that stands before something readable wins, and whatever comes before it is ignored. A mark of the fourth
sort is prose: where any words would do (all kinds but `number` and `choice`) it counts only if there is no other.
Without a mark, `number` reads the last number of the text and `choice` the last letter, or the one choice that the text
names; `contains` and `math` look at the whole text; for the other kinds the reply is unanswered.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from malt.trees.quantities import LONGEST, Quantity, last_quantity, parse_quantity, read_quantity

MOST_MARKS = 50
"""Marks looked at, from the end: no real reply has more, and a hostile one shall not cost more."""


class Mark(NamedTuple):
    """What stands at one mark, cleaned, and how far it can be trusted to be an answer."""

    text: str
    strong: bool = True
    whole: bool = False
    """It counts only if all of it is one value."""


class NumberRead(NamedTuple):
    """The answer as it was written, and the number in it; no number: what is written there is none."""

    answer: str
    quantity: Quantity | None


class ChoiceRead(NamedTuple):
    """The answer as it was written, and the letter it stands for; no letter: it is none of the choices."""

    answer: str
    letter: str | None


def final_answer(text: str) -> str | None:
    """Return the last marked answer of a reply without its markup, or None where nothing is marked."""
    prose: str | None = None
    for mark in marks(text):
        if mark.strong and not mark.whole:
            return mark.text
        prose = prose or (None if mark.strong else mark.text)
    return prose


def read_number(text: str) -> NumberRead | None:
    """Return the number that a reply gives as its answer, or None where it has none to give."""
    for mark in marks(text):
        quantity = parse_quantity(mark.text) if mark.whole else read_quantity(mark.text)
        if quantity is not None:
            return NumberRead(quantity.text, quantity)
    marked = final_answer(text)
    if marked is not None:
        return NumberRead(marked, None)
    quantity = last_quantity(text)
    return None if quantity is None else NumberRead(quantity.text, quantity)


def read_choice(text: str, choices: Sequence[str]) -> ChoiceRead | None:
    """Return the choice that a reply gives as its answer, or None where it names none."""
    for mark in marks(text):
        letter = parse_choice(mark.text, choices) or (None if mark.whole else named_choice(mark.text, choices))
        if letter:
            return ChoiceRead(mark.text, letter)
    marked = final_answer(text)
    if marked is not None:
        return ChoiceRead(marked, None)
    last = last_letter(text, choices) or parse_choice(clean(text), choices) or named_choice(text, choices)
    return None if last is None else ChoiceRead(last, last)


# Marks.

FINAL_BEFORE = re.compile(r"final[\s*_]+$", re.IGNORECASE)
SEPARATOR = re.compile(r"[\s*_]*(?:\([^()\n]{0,60}\))?[\s*_]{0,4}[:：=][\s*_]*|[*_#:： \t]*(?:\n\s*|$)")
PROSE = re.compile(
    r"[*_]*\s+(?:to\s[^.:\n]{0,80}?\s)?(?:is|are|was|would be|should be|must be|will be|equals)(?![\w])\s*[:=]?\s*|[*_ ]*[:：=][\s*_]*",
    re.IGNORECASE,
)
OTHERS = re.compile(
    r"(?:initial|proposed|previous|original|given|provided|first|wrong|incorrect|student's|earlier|old|no)[\s*_]+$",
    re.IGNORECASE,
)
LINE_BEFORE = re.compile(r"(?:^|\n)[\s*_#>\d.)-]*$")
SECTION = re.compile(r"\s*(?:(?:\$\$|\\\[|```\w*)\s*\n\s*)?([^\n]+)")


def marks(text: str) -> Iterator[Mark]:
    """Yield what is marked as an answer, the last first."""
    return islice(every_mark(text), MOST_MARKS)


def every_mark(text: str) -> Iterator[Mark]:
    """Yield marks from the end to the beginning; what a strong one holds ends where the next begins."""
    low = lowered(text)
    positions = {word: low.rfind(word) for word in ("answer", "\\boxed", "####")}
    end = len(text)
    while (position := max(positions.values())) >= 0:
        word = next(word for word, found in positions.items() if found == position)
        mark = mark_at(word, text, position, end)
        if mark is not None and mark.text:
            yield mark
        if mark is not None and mark.strong:
            end = position
        positions[word] = low.rfind(word, 0, position)
