r"""Reading the final answer from a reply. What was read is stored beside the grade.

A mark says where the answer is:

1. `Final Answer: x`, on that line or under it as a heading, in Markdown or not;
2. `\boxed{x}`;
3. `#### x`, on the text's last line, or where x is one value and nothing else (headings look the same);
4. `the answer is x`, `Answer: x`, `the final answer is x`.

The last mark with something readable wins, and all before it is ignored. The fourth sort is prose: for `number` and
`choice` it counts among the others if the value follows at once (`the answer is 18 dollars`), else, and for all other
kinds, only if none of the others is there. Without a mark, `number` reads the last number of the text (a result, where
its last sentence calculates one) and `choice` the last letter, or the one choice that it names; `contains` and
`math` look at the whole text; for the other kinds the reply is unanswered.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from malt.grading.numbers import LONGEST, Quantity, last_quantity, leading_quantity, parse_quantity, read_quantity

MOST_MARKS = 50
"""Places looked at for a mark, from the end: no real reply needs more, and a hostile one shall not cost more."""
MOST_LINES = 5
"""Lines under a heading in which its answer may begin."""


class Mark(NamedTuple):
    """What stands at one mark, cleaned."""

    text: str
    prose: bool = False
    """It is of the fourth sort."""
    whole: bool = False
    """It may head a solution: it counts only if it is one value and nothing else."""
    closing: bool = True
    """It is one sentence, and nothing follows it."""


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
    strong, loose = unread(list(marks(text)))
    mark = strong or loose
    return mark.text if mark else None


def read_number(text: str) -> NumberRead | None:
    """Return the number that a reply gives as its answer, or None where it has none to give."""
    found = list(marks(text))
    for mark in found:
        quantity = marked_number(mark)
        if quantity is not None:
            return NumberRead(quantity.text, quantity)
    strong, loose = unread(found)
    if strong is not None:
        return NumberRead(strong.text, None)
    quantity = (read_quantity(loose.text) if loose and loose.closing else None) or last_quantity(text)
    if quantity is not None:
        return NumberRead(quantity.text, quantity)
    return NumberRead(loose.text, None) if loose else None


@lru_cache(maxsize=8192)
def marked_number(mark: Mark) -> Quantity | None:
    """Return the number at a mark; prose must begin with it, for it may begin a whole solution as well."""
    if mark.whole:
        return parse_quantity(mark.text)
    return leading_quantity(mark.text) if mark.prose else read_quantity(mark.text)


def read_choice(text: str, choices: Sequence[str]) -> ChoiceRead | None:
    """Return the choice that a reply gives as its answer, or None where it names none."""
    found = list(marks(text))
    for mark in found:
        if is_hedged(mark.text, choices):
            return ChoiceRead(mark.text, None)
        letter = parse_choice(mark.text, choices)
        if letter is None and not (mark.whole or mark.prose):
            letter = stated_choice(mark.text, choices)
        if letter is not None:
            return ChoiceRead(mark.text, letter)
    strong, loose = unread(found)
    if strong is not None:
        return ChoiceRead(strong.text, None)
    letter = stated_choice(loose.text, choices) if loose else None
    letter = letter or parse_choice(clean(text), choices) or stated_choice(text[-LONGEST:], choices)
    return ChoiceRead(letter, letter) if letter else None


def unread(found: Sequence[Mark]) -> tuple[Mark | None, Mark | None]:
    """Return the last mark that is an answer whatever it says, and the last one that is prose."""
    strong = next((mark for mark in found if not (mark.prose or mark.whole)), None)
    return strong, next((mark for mark in found if mark.prose), None)


# Where the marks are.

FINAL_BEFORE = re.compile(r"final[\s*_]{1,4}$")
OTHERS_BEFORE = re.compile(
    r"(?:initial|proposed|previous|original|given|provided|first|wrong|incorrect|student's|earlier|old|no)[\s*_]{1,4}$"
)
LINE_BEFORE = re.compile(r"(?:^|\n)[\s*_#>\d.)-]*(?:(?:my|the)\s)?(?:final[\s*_]*)?$")
COLON = re.compile(r"[\s*_]{0,4}(?:\([^()\n]{0,60}\))?[\s*_]{0,4}[:\uff1a=]")
LINE_END = re.compile(r"[*_#: \t]*(?:\n|$)")
PROSE = re.compile(
    r"[*_]*\s(?:to\s[^.:\n]{0,80}?\s)?(?:is|are|was|would be|should be|must be|will be|equals)(?!\w)", re.IGNORECASE
)
LINES = re.compile(r"[^\n]+")
SENTENCES = re.compile(r"[.!?]\s+[A-Z]")


def marks(text: str) -> Iterator[Mark]:
    """Yield what is marked as an answer, the last first; what one holds ends where the next begins, prose apart."""
    low = lowered(text)
    positions = {word: low.rfind(word) for word in FINDERS}
    end = len(text)
    for _ in range(MOST_MARKS):
        word, position = max(positions.items(), key=itemgetter(1))
        if position < 0:
            return
        mark = FINDERS[word](text, low, position, end)
        positions[word] = low.rfind(word, 0, position)
        if mark is not None:
            yield mark
        if word != "answer" or (mark is not None and not mark.prose):
            end = position


def answer_mark(text: str, low: str, position: int, end: int) -> Mark | None:
    """Read a mark made with the word `answer`."""
    after = position + len("answer")
    before = low[max(0, position - 40) : position]
    final = FINAL_BEFORE.search(before) is not None
    if OTHERS_BEFORE.search(before):
        return None
    if colon := COLON.match(text, after):
        return held(text, colon.end(), end, prose=not final)
    if prose := PROSE.match(text, after):
        return held(text, prose.end(), end, prose=True)
    if LINE_END.match(text, after) and LINE_BEFORE.search(before):
        return held(text, after, end, prose=not final)
    return None


def box_mark(text: str, low: str, position: int, end: int) -> Mark | None:  # noqa: ARG001 - all finders are called alike
    r"""Read a `\boxed{…}`, whose braces may nest."""
    start = position + len(r"\boxed")
    while start < end and text[start] == " ":
        start += 1
    close = closing_brace(text, start, end)
    content = clean(text[start + 1 : close]) if close else ""
    return Mark(content) if content else None


def hash_mark(text: str, low: str, position: int, end: int) -> Mark | None:  # noqa: ARG001
    """Read a `#### …`."""
    line = LINES.match(text, position + 4, end)
    content = clean(line[0]) if line else ""
    if not line or not content:
        return None
    last = not text[line.end() :].strip()
    return Mark(content, whole=not last)


FINDERS = {"answer": answer_mark, r"\boxed": box_mark, "####": hash_mark}


def held(text: str, start: int, end: int, *, prose: bool) -> Mark | None:
    """Return what stands on this line, or else on the next that says anything."""
    for line in islice(LINES.finditer(text, start, end), MOST_LINES):
        content = clean(line[0])
        if content:
            under = "\n" in text[start : line.start()]
            closing = not SENTENCES.search(content) and not text[line.end() :].strip()
            return Mark(content, prose, whole=prose and under, closing=closing)
    return None


def lowered(text: str) -> str:
    """Lower the text's case without moving any position; a few letters grow when they are lowered."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


BRACES = re.compile(r"\\[{}\\]|[{}]")


def closing_brace(text: str, opening: int, end: int) -> int | None:
    """Return where the brace that opens at `opening` closes."""
    if not text.startswith("{", opening):
        return None
    depth = 0
    for match in BRACES.finditer(text, opening, end):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return None


# Markup around an answer.

PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("<answer>", "</answer>"))
OPENINGS = tuple(opening for opening, _ in PAIRS)
COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*(?=\{)")
LEAD_IN = re.compile(
    r"(?:(?:so|therefore|thus|hence),?\s+)?(?:(?:the|my)\s+)?(?:final|correct)?\s*answer(?:\s+is(?!\w)\s*:?|\s*[:=])\s*",
    re.IGNORECASE,
)
CLOSING = "I hope it is correct"
"""How models close that were shown the usual examples for MATH."""


def clean(text: str) -> str:
    """Strip Markdown, quotation marks, LaTeX delimiters and phrases such as `the answer is` around an answer."""
    for _ in range(5):
        inner = unwrapped(text.strip(" \t\r\n*_`\"'\u201c\u201d\u2018\u2019#").rstrip(".,;: ").lstrip(": "))
        if inner == text:
            break
        text = inner
    return text


def unwrapped(text: str) -> str:
    """Take off one layer."""
    for opening, closing in PAIRS if text.startswith(OPENINGS) else ():
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(text) - len(inner) == len(opening) + len(closing) and opening not in inner:
            return inner
    command = COMMAND.match(text)
    if command and closing_brace(text, command.end(), len(text)) == len(text) - 1:
        return text[command.end() + 1 : -1]
    if "nswer" in text[:60]:
        text = text[leading.end() :] if (leading := LEAD_IN.match(text)) else text
    return text.partition(CLOSING)[0]


# Choices.

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_FIRST = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|letter)\s+)?(?P<open>[(\[{*]{0,4})(?P<letter>[A-Z])(?P<close>[)\]}*]{0,4})(?![\w'\u2019])",
    re.IGNORECASE,
)
LETTER = re.compile(r"[A-Z](?<![\w'\u2019\\]\w)(?![\w'\u2019])")
LIKE_A_WORD = re.compile(r"(?<![(\[*])[AI](?= [a-z])")
ARTICLE = re.compile(r"(?:the|an?)\s+")


def parse_choice(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter that a text begins with, or whose choice's own words it is; else None."""
    words = ARTICLE.sub("", normalised(text), count=1) if len(text) < LONGEST else ""
    for letter, choice in zip(LETTERS, choices, strict=False):
        if words and words == ARTICLE.sub("", normalised(choice), count=1):
            return letter
    match = LETTER_FIRST.match(text)
    if match is None or match["letter"].upper() not in letters(choices):
        return None
    rest = text[match.end() :]
    bracketed = match["close"] or match["open"]
    if rest == "" or bracketed or rest[0] in ".):,;-\u2013\u2014":
        return match["letter"].upper()
    return match["letter"] if match["letter"].isupper() and match["letter"] not in "AI" else None


def stated_choice(text: str, choices: Sequence[str]) -> str | None:
    """Return the last letter that stands alone in a text, else the letter of the one choice that it names."""
    for match in reversed(list(LETTER.finditer(text))):
        if match[0] in letters(choices) and not LIKE_A_WORD.match(text, match.start()):
            return match[0]
    said = " ".join(text.casefold().split())
    named = [(letter, words) for letter, words in zip(LETTERS, map(normalised, choices), strict=False) if words in said]
    found = [(letter, words) for letter, words in named if words and whole_words(words).search(said)]
    longest = [letter for letter, words in found if not any(words != other and words in other for _, other in found)]
    return longest[0] if len(longest) == 1 else None


@lru_cache(maxsize=1024)
def whole_words(words: str) -> re.Pattern[str]:
    """Return the pattern of these words standing whole."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


HEDGED = re.compile(
    r"[(\[*]*(?P<one>[A-Z])[)\]*.]*\s*(?:,|/|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?[(\[*]*(?P<other>[A-Z])(?![\w'\u2019])"
)


def is_hedged(text: str, choices: Sequence[str]) -> bool:
    """Whether an answer begins with two letters, such as `A or B`: it chooses neither."""
    hedged = HEDGED.match(text)
    return hedged is not None and hedged["one"] != hedged["other"] and {*hedged.groups()} <= {*letters(choices)}


def letters(choices: Sequence[str]) -> str:
    """Return the letters of the choices; A to J where the question has none of its own."""
    return LETTERS[: len(choices) or 10]


def normalised(text: str) -> str:
    """Reduce a text to what must be equal for an exact match: no case, markup, surrounding punctuation, extra space."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(clean(text).casefold().split()).strip(".,;:!?\"'`*_ ")
