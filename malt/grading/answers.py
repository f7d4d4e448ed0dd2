r"""Reading the final answer from a reply. The text that was read is stored beside the grade.

A mark says where the answer is:

1. `Final Answer: x`, on that line or under it as a heading, in Markdown or not;
2. `\boxed{x}`;
3. `#### x`, on the text's last line, or where x is one value and nothing else (headings look the same);
4. `the answer is x`, `Answer: x`, `the final answer is x`.

The last readable mark wins. Marks of sort 4 are prose: for the graders `number` and `choice` they count like the other
marks if the value follows at once (`the answer is 18 dollars`); otherwise, and for all other graders, they count only
if there is no other mark. Without a mark, `number` reads the last number of the text (a result, where its last sentence
calculates one) and `choice` the last letter, or the one choice that it names; `contains` and `math` look at the whole
text; for the other graders the reply is unanswered.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from malt.grading.normalize import closing_brace, is_spaced, separate_scripts, to_keyboard_signs
from malt.grading.numbers import Quantity, last_quantity, leading_quantity, parse_quantity, read_quantity

_MOST_MARKS = 50
"""Most places searched for a mark, from the end: enough for any real reply, and a bound on a hostile one's cost."""
_MOST_LINES = 5
"""Lines under a heading in which its answer may begin."""


class Mark(NamedTuple):
    """Text at one mark, cleaned."""

    text: str
    prose: bool = False
    """Whether the mark is of sort 4."""
    whole: bool = False
    """Whether the mark may be a solution's heading, so that it counts only if its text is one value."""
    closing: bool = True
    """Whether the text is one sentence, and nothing follows it."""


class NumberRead(NamedTuple):
    """Answer as written, and the number in it; None if it is not a number."""

    answer: str
    quantity: Quantity | None


def final_answer(text: str) -> str | None:
    """Return the last marked answer of a reply without its markup, or None if none is marked."""
    strong, loose = last_marks(list(marks(text)))
    mark = strong or loose
    return mark.text if mark else None


def read_number(text: str) -> NumberRead | None:
    """Return the number that a reply gives as its answer, or None if it gives no answer."""
    text = _work_out_factorials(separate_scripts(text))
    found = list(marks(text))
    for mark in found:
        quantity = _marked_number(mark)
        if quantity is not None:
            return NumberRead(quantity.text, quantity)
        if not (mark.prose or mark.whole) and _DIGIT.search(mark.text):
            return NumberRead(mark.text, None)
    return _read_unmarked_number(text, found)


def _work_out_factorials(text: str) -> str:
    return _FACTORIAL.sub(lambda found: str(math.factorial(int(found[1]))), text) if "!" in text else text


def _read_unmarked_number(text: str, found: Sequence[Mark]) -> NumberRead | None:
    strong, loose = last_marks(found)
    if strong is not None:
        return NumberRead(strong.text, None)
    quantity = (read_quantity(loose.text) if loose and loose.closing else None) or last_quantity(text)
    if quantity is not None:
        return NumberRead(quantity.text, quantity)
    return NumberRead(loose.text, None) if loose else None


_FACTORIAL = re.compile(r"(?<![\w.,])([0-9]{1,2})!(?=\s*[$}])")
"""A factorial in a formula; in prose `5!` is a number with an exclamation mark."""
_DIGIT = re.compile("[0-9]")


@lru_cache(maxsize=8192)
def _marked_number(mark: Mark) -> Quantity | None:
    """Return the number at a mark; prose must begin with the number, since it may also introduce a whole solution."""
    if mark.whole:
        return parse_quantity(mark.text)
    return leading_quantity(mark.text) if mark.prose else read_quantity(mark.text)


def last_marks(found: Sequence[Mark]) -> tuple[Mark | None, Mark | None]:
    """Return the last mark that is neither prose nor a heading, and the last one that is prose."""
    strong = next((mark for mark in found if not (mark.prose or mark.whole)), None)
    return strong, next((mark for mark in found if mark.prose), None)


_STOP_TOKENS = re.compile(
    r"(?:\s*(?:<[|\uff5c][^<>|\uff5c\n]{1,40}[|\uff5c]>|</s>|<(?:eos|pad|unk|end_of_turn|EOT|end_of_text)>|\[/INST\]))+\s*$"
)


def without_stop_tokens(text: str) -> str:
    """Strip chat templates' end-of-turn tokens from the end of a text."""
    tail = text[-400:]
    if not tail.rstrip().endswith((">", "]")):
        return text
    found = _STOP_TOKENS.search(tail)
    return text[: len(text) - len(tail) + found.start()] if found else text


# Finding the marks.

_FINAL_BEFORE = re.compile(r"final[\s*_]{1,4}$")
_OTHERS_BEFORE = re.compile(
    r"(?:initial|proposed|previous|original|given|provided|first|wrong|incorrect|student's|earlier|old|no)[\s*_]{1,4}$"
)
_LINE_BEFORE = re.compile(r"(?:^|\n)[\s*_#>\d.)-]*(?:(?:my|the)\s)?(?:final[\s*_]*)?$")
_COLON = re.compile(r"[\s*_]{0,4}(?:\([^()\n]{0,60}\))?[\s*_]{0,4}[:\uff1a=]")
_LINE_END = re.compile(r"[*_#: \t]*(?:\n|$)")
_PROSE = re.compile(
    r"[*_]*\s(?:to\s[^.:\n]{0,80}?\s)?(?:is|are|was|would be|should be|must be|will be|equals)(?!\w)", re.IGNORECASE
)
_LINES = re.compile(r"[^\n]+")
_SENTENCES = re.compile(r"[.!?]\s+[A-Z]")


def marks(text: str) -> Iterator[Mark]:
    """Yield the marks, the last first; the text of one ends where the next begins, unless the next is prose."""
    low = _lowered(text)
    finders = _FINDERS if text.isascii() else _ALL_FINDERS
    positions = {word: low.rfind(word) for word in finders}
    end = len(text)
    for _ in range(_MOST_MARKS):
        word, position = max(positions.items(), key=itemgetter(1))
        if position < 0:
            return
        mark = finders[word](text, low, position, end)
        positions[word] = low.rfind(word, 0, position)
        if mark is not None:
            yield mark
        if word in (r"\boxed", "####") or (mark is not None and not mark.prose):
            end = position


def _answer_mark(text: str, low: str, position: int, end: int) -> Mark | None:
    """Read a mark made with the word `answer`."""
    after = position + len("answer")
    before = low[max(0, position - 40) : position]
    final = _FINAL_BEFORE.search(before) is not None
    if _OTHERS_BEFORE.search(before):
        return None
    if colon := _COLON.match(text, after):
        return _mark_at(text, colon.end(), end, prose=not final)
    if prose := _PROSE.match(text, after):
        return _mark_at(text, prose.end(), end, prose=True)
    if _LINE_END.match(text, after) and _LINE_BEFORE.search(before):
        return _mark_at(text, after, end, prose=not final)
    return None


def _box_mark(text: str, low: str, position: int, end: int) -> Mark | None:  # noqa: ARG001 - all are called alike
    r"""Read a `\boxed{…}`, whose braces may nest, and boxes joined to it by `and`, commas or the like, as one list."""
    contents: list[str] = []
    while position >= 0:
        opening = _BOX.match(text, position)
        close = closing_brace(text, opening.end(), end) if opening else None
        if opening is None or close is None or (contents and not _JOINED_BOXES.fullmatch(text, close + 1, end)):
            break
        contents.insert(0, clean(text[opening.end() + 1 : close]))
        end, position = position, text.rfind(r"\boxed", 0, position)
    content = ", ".join(filter(None, contents))
    return Mark(content) if content else None


_BOX = re.compile(r"\\boxed *")
_JOINED_BOXES = re.compile(r"(?:[$\s.,]|\\text\s*\{\s*(?:and|or)\s*\}|and\b|or\b|[A-Za-z]\s*=|\\[()\[\]]){0,40}")


def _other_mark(text: str, low: str, position: int, end: int) -> Mark | None:
    """Read a mark in another language: the word for `answer`, then a colon or `is`."""
    word = next(word for word in _OTHER_WORDS if low.startswith(word, position))
    link = _OTHER_LINK.match(text, position + len(word))
    found = _mark_at(text, link.end(), end, prose=True) if link else None
    return found and found._replace(text=clean(_COPULA.sub("", found.text)))


_OTHER_LANGUAGES = """
答案 答え 正解 정답 답 ответ réponse respuesta resposta risposta antwort cevap जवाब उत्तर الإجابة الجواب คำตอบ సమాధానం
"""
_OTHER_WORDS = tuple(_OTHER_LANGUAGES.split())
"""`Answer` in Chinese, Japanese, Korean, Russian, French, Spanish, Portuguese, Italian, German, Hindi, Arabic, Thai,
Telugu and Turkish."""
_OTHER_LINK = re.compile(
    r"[\s*_]{0,4}(?:finale?|correcta?|è|é|es|est|ist|lautet|คือ|है|هي|هو|:|\uff1a|=|是|为|為|は|은|는)[\s*_:\uff1a]*",
    re.IGNORECASE,
)
_COPULA = re.compile(r"\s?(?:です|である|だ|입니다|이다|예요|이에요)[。.]?$")


def _hash_mark(text: str, low: str, position: int, end: int) -> Mark | None:  # noqa: ARG001 - all are called alike
    line = _LINES.match(text, position + 4, end)
    if line is None or not (content := clean(line[0])):
        return None
    return Mark(content, whole=bool(text[line.end() :].strip()))


_FINDERS = {"answer": _answer_mark, r"\boxed": _box_mark, "####": _hash_mark}
_ALL_FINDERS = _FINDERS | dict.fromkeys(_OTHER_WORDS, _other_mark)


def _mark_at(text: str, start: int, end: int, *, prose: bool) -> Mark | None:
    """Return a mark with the rest of this line, or else with the next line that is not empty."""
    for line in islice(_LINES.finditer(text, start, end), _MOST_LINES):
        content = clean(line[0])
        if content:
            under = "\n" in text[start : line.start()]
            closing = not _SENTENCES.search(content) and not text[line.end() :].strip()
            return Mark(content, prose, whole=prose and under, closing=closing)
    return None


def _lowered(text: str) -> str:
    """Lower a text's case and keep all positions: a few letters become longer, so then only ASCII is lowered."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


# Markup around an answer.

_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("<answer>", "</answer>"))
_OPENINGS = tuple(opening for opening, _ in _PAIRS)
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*(?=\{)")
_LEAD_IN = re.compile(
    r"(?:(?:so|therefore|thus|hence),?\s+)?(?:(?:the|my)\s+)?(?:final|correct)?\s*answer(?:\s+is(?!\w)\s*:?|\s*[:=])\s*",
    re.IGNORECASE,
)
_CLOSING = "I hope it is correct"
"""Closing phrase of models that were shown the usual examples for MATH."""


def clean(text: str) -> str:
    """Strip Markdown, quotation marks, LaTeX delimiters and phrases such as `the answer is` around an answer."""
    for _ in range(5):
        inner = _unwrapped(text.strip(" \t\r\n*_`\"'\u201c\u201d\u2018\u2019#").rstrip(".,;: ").lstrip(": "))
        if inner == text:
            break
        text = inner
    return text


def _unwrapped(text: str) -> str:
    """Strip one layer of markup."""
    for opening, closing in _PAIRS if text.startswith(_OPENINGS) else ():
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(text) - len(inner) == len(opening) + len(closing) and opening not in inner:
            return inner
    command = _COMMAND.match(text)
    if command and closing_brace(text, command.end()) == len(text) - 1:
        return text[command.end() + 1 : -1]
    if "nswer" in text[:60]:
        text = text[leading.end() :] if (leading := _LEAD_IN.match(text)) else text
    return text.partition(_CLOSING)[0]


# Texts.


def normalised(text: str) -> str:
    """Reduce a text to what must be equal for an exact match: no case, markup, surrounding punctuation, extra space."""
    if not text.isascii():
        text = to_keyboard_signs(unicodedata.normalize("NFKC", to_keyboard_signs(text)))
    return " ".join(clean(text).casefold().split()).strip(".,;:!?\"'`*_ ")


def is_true_or_false(text: str) -> bool | None:
    """Return the truth value that a normalised text states, or None."""
    return True if text in ("true", "yes") else False if text in ("false", "no") else None


def stands_in(words: str, text: str) -> bool:
    """Whether these words occur in a text as whole words: `7` not in `17`, `7.5`, `1,7` or `-7`."""
    start = text.find(words) if words else -1
    while start >= 0:
        if _is_apart(text, start, start + len(words)):
            return True
        start = text.find(words, start + 1)
    return False


def _is_apart(text: str, start: int, end: int) -> bool:
    """Whether no word or number continues beyond either end."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if text[start].isdigit() and _NUMBER_BEFORE.search(before):
        return False
    if text[end - 1].isdigit() and _NUMBER_AFTER.match(after):
        return False
    return not (_joined(before[-1:], text[start]) or _joined(text[end - 1], after[:1]))


_NUMBER_BEFORE = re.compile(r"[-\u2212.]$|[0-9],$")
_NUMBER_AFTER = re.compile(r"[.,][0-9]")


def _joined(left: str, right: str) -> bool:
    """Whether two adjacent characters belong to one word; never in scripts without spaces."""
    return bool(left and right) and all((c.isalnum() or c == "_") and is_spaced(c) for c in (left, right))


def unmarked_formula(text: str) -> str:
    """Return the answer of a reply without a mark: its last formula with the rest of the line, else the whole reply."""
    formulas = list(_FORMULA.finditer(text))
    if not formulas:
        return text.strip()
    first = last = formulas.pop()
    while formulas and _JOINED_BOXES.fullmatch(text, formulas[-1].end(), first.start()):
        first = formulas.pop()
    line = text[text.rfind("\n", 0, first.start()) + 1 : first.start()]
    denied = _DENIED.search(line[-60:])
    start = first.start() - len(line) if denied else first.start()
    return text[start:].partition("\n")[0].strip() if "\n" not in last[0] else text[start:].strip()


_FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$]+\$|\\\((?:(?!\\\().)+?\\\)|\\\[(?:(?!\\\[).)+?\\\]", re.DOTALL)
"""A formula ends before the next begins: otherwise each of many unclosed ones would be searched to the text's end."""
_DENIED = re.compile(r"\b(?:not|never|no|cannot|than|from|between|least|most|wrong)\b|n't\b", re.IGNORECASE)
