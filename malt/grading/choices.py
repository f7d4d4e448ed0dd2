"""Reading which choice a reply names: by letter, by the choice's own words, or by its number. A hedge names none."""

import re
from functools import lru_cache
from typing import NamedTuple

from malt.grading.answers import Mark, clean, last_marks, marks, normalised
from malt.grading.normalize import separate_scripts
from malt.grading.numbers import LONGEST, equal, parse_quantity

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ChoiceRead(NamedTuple):
    """Answer as written, and the letter of its choice; None if it names none of the choices, or several."""

    answer: str
    letter: str | None


def read_choice(text: str, choices: tuple[str, ...]) -> ChoiceRead | None:
    """Return the choice that a reply gives as its answer, or None if it names none."""
    text, choices = separate_scripts(text), _bare(choices)
    found = list(marks(text))
    for mark in found:
        letter = parse_choice(mark.text, choices)
        if letter is None and _is_hedged(mark.text, choices):
            return ChoiceRead(mark.text, None)
        if letter := letter or _stated(mark.text, choices, weak=mark.whole or mark.prose):
            return ChoiceRead(mark.text, letter)
        if len(_mentioned(_first_sentence(mark.text), choices)) > 1:
            return ChoiceRead(mark.text, None)
    strong, loose = last_marks(found)
    return _read_unmarked_choice(text, loose, choices) if strong is None else ChoiceRead(strong.text, None)


def _read_unmarked_choice(text: str, loose: Mark | None, choices: tuple[str, ...]) -> ChoiceRead | None:
    letter = _stated(loose.text, choices) if loose else None
    letter = letter or parse_choice(clean(text), choices) or _last_stated(text[-LONGEST:], choices)
    if letter is not None:
        return ChoiceRead(letter, letter)
    return ChoiceRead(loose.text, None) if loose else None


_OWN_LETTER = re.compile(r"\(?([A-Z])[).:]\s*(?=\S)")


@lru_cache(maxsize=4096)
def _bare(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Strip the choices' own letters, as in `A)125`, if all of them have one in order."""
    own = [_OWN_LETTER.match(choice) for choice in choices]
    if choices and all(match and match[1] == letter for match, letter in zip(own, _LETTERS, strict=False)):
        return tuple(choice[match.end() :] for choice, match in zip(choices, own, strict=True) if match)
    return choices


_LETTER_FIRST = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|letter)\s+)?(?P<open>[(\[{*<]{0,4})\s?(?P<letter>[A-Z])\s?(?P<close>[)\]}*>]{0,4})(?![\w'\u2019])",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:the|an?)\s+")


def parse_choice(text: str, choices: tuple[str, ...]) -> str | None:
    """Return the letter that a text begins with if it names no other, or that of the choice that it spells out."""
    choices = _bare(choices)
    if same := _same_words(text, choices):
        return same
    match = _LETTER_FIRST.match(text)
    if _DENIED.match(text):
        return None
    if match is None or match["letter"].upper() not in _letters(choices):
        return _same_number(text, choices)
    letter, rest = match["letter"].upper(), text[match.end() :]
    if _may_be_word(match, rest):
        return None
    return letter if _alone(letter, rest, choices) else None


def _same_words(text: str, choices: tuple[str, ...]) -> str | None:
    words = _ARTICLE.sub("", normalised(text)) if len(text) < LONGEST else ""
    return next((letter for letter, own in _words_of(choices) if words and words == own), None)


def _may_be_word(match: re.Match[str], rest: str) -> bool:
    """Whether a letter without brackets or punctuation may be a word of a sentence, such as `a` or `I`."""
    is_marked = match["close"] or match["open"] or rest.lstrip()[:1] in (*".):,;-\u2013\u2014/", "")
    return not is_marked and (match["letter"].islower() or match["letter"] in "AI")


_ALSO = re.compile(r"\W*(?:or|and|maybe|possibly|perhaps|either|/)\b")
_NEXT_SENTENCE = re.compile(r"[.)]\s+[A-Z]\w* \w")


def _is_hedged(text: str, choices: tuple[str, ...]) -> bool:
    """Whether a text begins with a letter and then offers another choice as well."""
    match = _LETTER_FIRST.match(text)
    if match is None or not _ALSO.match(text, match.end()) or match["letter"].upper() not in _letters(choices):
        return False
    return _named(text[match.end() :], choices) is not None


def _alone(letter: str, rest: str, choices: tuple[str, ...]) -> bool:
    """Whether the text after a letter names no other choice; it may be the choice's own words, or another sentence."""
    own, said = dict(_words_of(choices)).get(letter), rest.lstrip(" .):,;-/\u2013\u2014")
    if own and _ARTICLE.sub("", said.casefold()).startswith(own):
        rest = said[said.casefold().find(own) + len(own) :]
    elif not _NEXT_SENTENCE.match(rest):
        rest = said
    rest = _first_sentence(rest)
    also = _named(rest, choices) if _ALSO.match(rest) else None
    return _mentioned(rest, choices) <= {letter} and also in (None, letter)


def _same_number(text: str, choices: tuple[str, ...]) -> str | None:
    number = parse_quantity(clean(text)) if len(text) < 200 else None
    if number is None:
        return None
    quantities = [(letter, parse_quantity(choice)) for letter, choice in zip(_LETTERS, choices, strict=False)]
    same = [letter for letter, quantity in quantities if quantity is not None and equal(number, quantity)]
    return same[0] if len(same) == 1 else None


@lru_cache(maxsize=4096)
def _words_of(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    words = [_ARTICLE.sub("", normalised(choice)) for choice in choices]
    return tuple(zip(_LETTERS, words, strict=False))


# Letters and choices that a text mentions.

_LETTER = re.compile(r"[A-Z](?<![\w'\u2019\\]\w)(?![\w'\u2019])")
_LIKE_A_WORD = re.compile(r"(?<![(\[*])(?:A(?= (?!or |and |nor |is |are )[a-z])|I(?= [a-z]))")
_LISTED = (
    r"[(\[*]{0,4}[A-Z][)\]*.]*(?:\s*(?:,|/|&|or\b|and\b|nor\b)\s*(?:or\s+|and\s+|nor\s+)?"
    r"[(\[*]{0,4}[A-Z][)\]*]*(?![\w'])){0,25}(?![\w'])"
)
"""At most 26 letters: without the bound, a long list would be searched again from each of its letters."""
_DENIED = re.compile(
    r"(?:\b(?:not|isn't|rul(?:es?|ed|ing) out|exclud\w+|eliminat\w+|reject\w*|except|unlike|rather than|instead of"
    r"|(?:anything|all) but"
    rf"|neither|never)\s+(?:is\s+|be\s+|options?\s+|choices?\s+|either\s+|both\s+)*{_LISTED})"
    rf"|{_LISTED}\s+(?:is|are|was|were|can be|must be)\s+(?:\w+ly\s+)?"
    r"(?:wrong|incorrect|false|not\b|ruled out|eliminated|excluded|impossible)"
    rf"|{_LISTED}\s+(?:cannot|can't|isn't|aren't|do not|does not|don't|doesn't)\b"
)
_CONCLUSION = re.compile(
    r"(?<![A-Za-z])(?:so|therefore|thus|hence|leaving|leaves|must be|answer is)(?![A-Za-z])", re.IGNORECASE
)
_SENTENCE_END = re.compile(
    r"(?<![A-Z])[.!](?:\s+|$)|(?<=[A-Z])\.\s+(?=[A-Z][a-z]* )|\n|;\s+(?=[a-z])"
    r"|(?<![a-z])(?:because|since|whereas|while)(?![a-z])"
)
_REST = re.compile(r"\b(?:rest|others?|remaining|incorrect|wrong|eliminated|distractors?)\b", re.IGNORECASE)


def _first_sentence(text: str) -> str:
    found = _SENTENCE_END.search(text)
    return text[: found.start()] if found else text


def _mentioned(text: str, choices: tuple[str, ...]) -> set[str]:
    """Return the letters that a text mentions as words and does not rule out."""
    text = _DENIED.sub(" ", text)
    *_, end = (0, *(match.end() for match in _CONCLUSION.finditer(text)))
    text = text[end:] if _LETTER.search(text, end) else text
    first = _words_of(choices)[:1]
    own = re.compile(rf"A {re.escape(first[0][1])}(?!\w)", re.IGNORECASE) if first else _LIKE_A_WORD
    starts = (match.start() for match in _LETTER.finditer(text))
    found = {text[start] for start in starts if own.match(text, start) or not _LIKE_A_WORD.match(text, start)}
    return found & set(_letters(choices))


def _stated(text: str, choices: tuple[str, ...], *, weak: bool = False) -> str | None:
    """Return the one letter that a statement mentions, else the letter of the one choice that it names by its words.

    `weak`: the statement may begin a solution, so that only its first sentence counts.
    """
    text = _first_sentence(text) if weak else text
    mentioned = _mentioned(text, choices)
    if mentioned:
        return mentioned.pop() if len(mentioned) == 1 else None
    return _named(text, choices)


def _named(text: str, choices: tuple[str, ...]) -> str | None:
    """Return the letter of the one choice whose words are in a text; a choice within a longer one does not count."""
    said = " ".join(text.casefold().split())
    found = [(letter, own) for letter, own in _words_of(choices) if own and own in said and _is_named(own, said)]
    longest = [letter for letter, own in found if not any(own != other and own in other for _, other in found)]
    return longest[0] if len(longest) == 1 else None


def _is_named(words: str, said: str) -> bool:
    """Whether a text has these words whole and does not deny them."""
    return any(not _DENIED_BEFORE.search(said, 0, match.start()) for match in _whole(words).finditer(said))


_DENIED_BEFORE = re.compile(
    r"\b(?:not|never|except|(?:anything|all) but|rather than|isn't|neither|nor) (?:the |an? )?$"
)


def _last_stated(text: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that the last sentence with a choice names; sentences about the other choices do not count."""
    sentences = [each for each in re.split(r"(?<=[.!?\n])\s+", text) if each]
    for each in reversed(sentences):
        mentioned = _mentioned(_first_sentence(each), choices)
        if len(mentioned) == 1:
            return mentioned.pop()
        if mentioned and not _REST.search(each):
            return None
    return _named(text, choices)


@lru_cache(maxsize=1024)
def _whole(words: str) -> re.Pattern[str]:
    beside = r"\w" if words.isascii() else "[0-9A-Za-z_]"
    return re.compile(rf"(?<!{beside}){re.escape(words)}(?!{beside})")


def _letters(choices: tuple[str, ...]) -> str:
    """Return the letters of the choices; A to J for a question without choices."""
    return _LETTERS[: len(choices) or 10]
