r"""Reading mathematics whole: a text becomes a `Reading` of all of its tokens, or `Unread` is raised.

Runs in the grader processes alone: SymPy takes its time, and a hostile expression all of it.
"""

import re

from sympy import Rational

from malt.grading.mathematics.openings import OPENINGS
from malt.grading.mathematics.parser import Parser
from malt.grading.mathematics.readings import MathValue, Reading, Words, split_signs, symbols_in
from malt.grading.mathematics.tokens import Token, Unread, tokenize
from malt.grading.words import COUNTED, FILLERS, UNITS, number_in_words

_MOST_TOKENS = 2_000


def read_math(text: str, nouns: frozenset[str] = frozenset(), known: frozenset[str] = frozenset()) -> Reading:
    """Read a whole text as mathematics, or raise `Unread`.

    `nouns` are words that may stand beside a value, `known` are symbols that may cancel out.
    """
    tokens = tokenize(_leave_subject_out(text), nouns)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "!!"):
        tokens.pop()
    if not tokens or len(tokens) > _MOST_TOKENS:
        raise Unread("nothing" if not tokens else f"{len(tokens)} tokens")
    if all(token.kind == "word" or token.text in ("-", "'", ",", "&", "(", ")") for token in tokens):
        return _read_words(tokens, nouns)
    parser = Parser(tokens, nouns=nouns, openings=OPENINGS)
    reading = parser.statement()
    if parser.peek().kind != "end":
        raise Unread(f"what stands after {parser.read_so_far()!r}")
    if lost := parser.symbols - symbols_in(reading) - known:
        raise Unread(f"{', '.join(sorted(lost))} cancels out")
    return split_signs(reading)


_SUBJECT = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|the|our|my|this|that|it|there|its|a|an|we|she|he|they)\b|\$?[A-Za-z]\$?(?=\s))"
    r"(?:[^=$\\\d]|\$[^$=\d]{1,30}\$)*?"
    r"\b(?:is|are|was|equals?|get|have|has|be)\b:?(?:\s+equal\s+to\b)?(?=[\s$\\:])",
    re.IGNORECASE,
)
_OR_SO = re.compile(r"^\s*no\.\s*(?=\d)|\s+or so\b", re.IGNORECASE)
_REASON = re.compile(r",?\s(?:because|since)\s")
_NEGATED = re.compile(r"\b(?:not|no|never|nor|neither|wrong|incorrect|false|cannot)\b|n[\u2019']t\b", re.IGNORECASE)


def _leave_subject_out(text: str) -> str:
    """Leave out a sentence's subject and verb, `The area is`; one that denies is kept, and is not read."""
    text = _OR_SO.sub("", _REASON.split(text, maxsplit=1)[0])
    subject = _SUBJECT.match(text)
    return text if subject is None or _NEGATED.search(subject[0]) else text[subject.end() :]


def _read_words(tokens: list[Token], nouns: frozenset[str]) -> Reading:
    """Read words: a number with a unit, else the words themselves."""
    words = [token.text for token in tokens if token.text not in ("(", ")")]
    for end in range(len(words), 0, -1):
        number = number_in_words(" ".join(words[:end])) if _are_units(words[end:], nouns) else None
        if number is not None:
            return MathValue(Rational(number.numerator, number.denominator))
    return Words(" ".join(" ".join(words).casefold().replace(" - ", "-").split()))


def _are_units(words: list[str], nouns: frozenset[str]) -> bool:
    known = (word in UNITS or word.lower() in UNITS or word.lower() in nouns | COUNTED | FILLERS for word in words)
    return all(known) and "percent" not in words
