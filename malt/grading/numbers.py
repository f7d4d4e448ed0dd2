"""Quantity: a number as people and models write one, and when two of them are equal.

Read are thousands separators (comma, space), decimals, signs, fractions, mixed numbers, scientific notation, currency,
percent, units, LaTeX, small number words, and measures in two units. Not a number: a range (3-5), a ratio or time
(10:30), a list (3, 4), an unfinished calculation (9 * 2), a symbolic value (2π). Time is linear in the text.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from malt.grading.normalize import plain
from malt.grading.words import COUNTED, NUMBER_WORDS, UNITS, number_in_words

LONGEST = 10_000
"""Most characters searched for a number; of a longer text only the beginning or the end is read."""
_MOST_DIGITS = 300
"""Digits and powers of ten past which a number is not read: exact arithmetic on it could take the grader's time."""


class Quantity(NamedTuple):
    """A number, how it was written, and the factor to its other reading: `50%` is 50 and 0.5, `2 dozen` 2 and 24.

    Benchmarks leave the unit out of the reference (`50`, and the question asks for percent), so either reading counts.
    """

    text: str
    value: Fraction
    scale: Fraction = Fraction(1)


def equal(left: Quantity, right: Quantity) -> bool:
    """Whether two quantities are the same number in one of their readings; with equal scales, only as written."""
    if left.scale == right.scale:
        return _are_near(left.value, right.value)
    readings, others = ((number.value, number.value * number.scale) for number in (left, right))
    return any(_are_near(one, other) for one in readings for other in others)


def _are_near(left: Fraction, right: Fraction) -> bool:
    """Whether two numbers are equal, or one is the other's rounding to six figures and places: 0.333333 is 1/3."""
    return left == right or _is_rounding(left, right) or _is_rounding(right, left) or _is_noise(left, right)


def _is_noise(left: Fraction, right: Fraction) -> bool:
    """Whether two numbers differ as floating point does, 17.9999999999 from 18."""
    places = max(decimal_places(left.denominator) or 0, decimal_places(right.denominator) or 0)
    return places >= 10 and abs(left - right) * 10**11 <= min(abs(left), abs(right))


def _is_rounding(written: Fraction, exact: Fraction) -> bool:
    places, others = decimal_places(written.denominator), decimal_places(exact.denominator)
    if places is None or places < 6 or (others is not None and others <= places):
        return False
    figures = str(abs(written.numerator) * 10**places // written.denominator)
    return len(figures) >= 6 and abs(exact - written) * 10**places <= Fraction(1, 2)


def decimal_places(denominator: int) -> int | None:
    """Return the number of decimal places of a fraction in lowest terms, None if they never end."""
    rest, places = denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    return places if rest == 1 else None


# Reading one number.

_DIGITS = (
    r"(?:[0-9]{1,3}(?>(?:\ [0-9]{3})+)(?![0-9])(?:,[0-9]{1,2}(?![0-9,]))?"  # 1 234 567,89
    r"|[0-9]{1,3}(?>(?:'[0-9]{3})+)(?![0-9])"  # 1'234
    r"|[0-9]{1,3}(?>(?:\.[0-9]{3})+)(?:,[0-9]{1,2}(?![0-9,])"  # 1.234,56
    r"|(?<=\.[0-9]{3}\.[0-9]{3})(?![0-9.]))"  # 1.234.567
    r"|[0-9]++(?>(?:,[0-9]++)*))(?:\.[0-9]++)?|\.[0-9]++"
)
_NUMBER = re.compile(
    rf"""
    (?<![\w.^√]) (?<![0-9][:/,]) (?<![^\W\d_]-)
    (?P<sign>[-+](?=\s?[$€£¥₹]?[0-9.]))?
    [$€£¥₹]? \s? (?P<sign_after>-)?
    (?:
      (?P<whole>[0-9]++) (?:\s+(?:and\s+)?) (?P<part>[0-9]++)\s?/\s?(?P<parts>[0-9]++)
    | (?P<half>[0-9]++)\s+and\s+a\s+half\b
    | 10\s?\^\s?\(?(?P<power>[-+]?[0-9]{{1,4}})\)?
    | (?P<digits>{_DIGITS})
      (?: \s?/\s?(?P<denominator>{_DIGITS})
      | [eE](?P<exponent>[-+]?[0-9]{{1,4}})(?![\w.])
      | \s?[*x]\s?10\s?(?:\^|\*\*)\s?\(?(?P<power_of_ten>[-+]?[0-9]{{1,4}})\)?
      )?
    )
    (?![0-9]) (?!\s?[√^]) (?!_) (?!'[0-9]) (?!\() (?!\s?/\s?[0-9(]) (?!:[0-9]|\s:\s[0-9]) (?!\.[0-9])
    (?: \s?(?P<percent>%|percent(?![a-z]))
    | (?P<letter>[kKMB])(?![\w])
    | \s(?P<magnitude>hundred|thousand|million|billion|trillion|dozen|cents?|lakh|crore)(?![a-z])
    | \s?(?P<ideograph>[万萬亿億千百만억])
    | (?P<cent>¢)
    )?
    """,
    re.VERBOSE,
)
_SCALES = {
    "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6,
    "billion": 10**9, "trillion": 10**12, "lakh": 10**5, "crore": 10**7, "百": 100, "千": 10**3,
    **dict.fromkeys("万萬만", 10**4), **dict.fromkeys("亿億억", 10**8),
}  # fmt: skip


def _quantity_of(match: re.Match[str]) -> Quantity | None:
    """Return the number that was matched, or None if its digits are no number (a list, a zero denominator)."""
    value = _unsigned(match)
    if value is None:
        return None
    negative = "-" in (match["sign"] or "") + (match["sign_after"] or "")
    if match["percent"] or match["cent"] or (match["magnitude"] or "").startswith("cent"):
        scale = Fraction(1, 100)
    else:
        scale = Fraction(_SCALES.get(match["letter"] or match["magnitude"] or "", 1))
        value *= _SCALES.get(match["ideograph"] or "", 1)
    return Quantity(match[0].strip(), -value if negative else value, scale)


def _unsigned(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _MOST_DIGITS:
        return None
    if match["whole"]:
        part = _over(Fraction(match["part"]), Fraction(match["parts"]))
        return None if part is None else int(match["whole"]) + part
    if match["half"]:
        return int(match["half"]) + Fraction(1, 2)
    if match["power"]:
        return _times_ten_to(Fraction(1), match["power"])
    value = _decimal(match["digits"])
    if value is not None and match["denominator"]:
        return _over(value, _decimal(match["denominator"]))
    return value if value is None else _times_ten_to(value, match["exponent"] or match["power_of_ten"] or "0")


def _over(numerator: Fraction, denominator: Fraction | None) -> Fraction | None:
    return numerator / denominator if denominator else None


def _times_ten_to(value: Fraction, power: str) -> Fraction | None:
    return value * Fraction(10) ** int(power) if abs(int(power)) <= _MOST_DIGITS else None


def _decimal(digits: str) -> Fraction | None:
    """Read digits with separators: `1,250.5`, `1.250,5`, `1,00,000`, `1 000`, `12,50`; `3,4,5` is a list."""
    if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{3})+(?:,[0-9]+|(?<=\.[0-9]{3}\.[0-9]{3}))", digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif " " in digits:
        digits = digits.replace(" ", "").replace(",", ".")
    groups = digits.replace("'", "").split(",")
    if len(groups) == 1:
        return Fraction(groups[0])
    last = groups[-1].partition(".")[0]
    if len(last) == 3 and len(groups[0]) <= 3 and all(2 <= len(group) <= 3 for group in groups[1:-1]):
        return Fraction("".join(groups))
    return Fraction(".".join(groups)) if len(groups) == 2 and last == groups[1] else None


# Measures in two units, and numbers in words.

_MEASURES = {
    ("dollar", "cent"): 100, ("euro", "cent"): 100, ("hour", "minute"): 60, ("minute", "second"): 60,
    ("foot", "inch"): 12, ("year", "month"): 12, ("week", "day"): 7, ("day", "hour"): 24, ("pound", "ounce"): 16,
    ("kilogram", "gram"): 1000, ("kilometer", "meter"): 1000, ("meter", "centimeter"): 100,
}  # fmt: skip
_SPELLINGS = """
dollar dollars; euro euros; cent cents; foot feet ft; inch inches in; kilogram kilograms kg; gram grams g;
kilometer kilometers km; meter meters m; centimeter centimeters cm; hour hours hrs hr h; minute minutes mins min;
second seconds secs sec; year years; month months; week weeks; day days; pound pounds lbs lb; ounce ounces oz
"""
_MEASURE_UNITS = {spelling: line.split()[0] for line in _SPELLINGS.split(";") for spelling in line.split()}
_MEASURE = re.compile(
    r"(?<![\w.,/^-])([0-9]++(?>(?:,[0-9]{3})*))\s?([a-z]{1,10}+),?\s(?:and\s)?([0-9]++(?:\.[0-9]++)?)\s?([a-z]{1,11}+)(?!\w)"
)


def _measured(match: re.Match[str]) -> Quantity | None:
    """Return a measure in the smaller of its two units, `1 hour 20 minutes` as 80; None if it is no measure."""
    ratio = _MEASURES.get((_MEASURE_UNITS.get(match[2], ""), _MEASURE_UNITS.get(match[4], "")))
    first = _decimal(match[1])
    if ratio is None or first is None or len(match[0]) > _MOST_DIGITS:
        return None
    return Quantity(match[0], first * ratio + Fraction(match[3]), Fraction(1, ratio))


def _in_words(text: str) -> Quantity | None:
    """Return the number that a text without digits is, with at most a unit after it, as in `Twenty-five dollars`."""
    words = _WORD_OR_SIGN.findall(text[:200])
    if words and (ideographs := _in_ideographs(words[0])) is not None:
        return Quantity(words[0], Fraction(ideographs))
    for end in range(min(len(words), 16), 0, -1):
        value = number_in_words(" ".join(words[:end]))
        if value is not None:
            rest = {word.lower() for word in words[end:]}
            if rest & (NUMBER_WORDS | _OPERATIONS):
                return None
            scale = Fraction(1, 100) if words[end : end + 1] in (["percent"], ["cents"], ["cent"]) else Fraction(1)
            return Quantity(" ".join(words[:end]).lower(), Fraction(value), scale)
    return None


_IDEOGRAPHS = re.compile("[〇零一二两三四五六七八九十百千万萬亿億]+")


def _in_ideographs(text: str) -> int | None:
    """Return the number that a text in Chinese numerals begins with, up to its counter: `十八个` is 18."""
    if (found := _IDEOGRAPHS.match(text)) is None:
        return None
    total = section = digit = 0
    for sign in found[0]:
        value = 2 if sign == "两" else int(unicodedata.numeric(sign))
        if value < 10:
            digit = value
        elif value < 10_000:
            section, digit = section + (digit or 1) * value, 0
        else:
            total, section, digit = (total + section + digit) * value, 0, 0
    return total + section + digit


_WORD_OR_SIGN = re.compile(r"[^\W\d_]+|[^\w\s,;.!?'\"*()-]")
_OPERATION_WORDS = "point and or to in squared cubed factorial choose mod minus plus times over divided"
_OPERATIONS = frozenset(_OPERATION_WORDS.split())


# Choosing the number of a text that is the answer.


class _Found(NamedTuple):
    """One number of a text and its position; no quantity where it is part of a calculation, a range or a ratio."""

    start: int
    end: int
    quantity: Quantity | None


_TANGLED_BEFORE = re.compile(
    r"(?:[0-9)%]\s?[-+*÷/x^]|[0-9]\s:|[0-9%]\s(?:to|through|by|point)|[√<>]=?|[0-9A-Za-z)]\s?\^"
    r"|(?<![A-Za-z])[b-zB-HJ-Z](?:\s?[-+*/]|\((?=$))|between\s[$€£¥₹]?[0-9][0-9.,]*\sand"
    r"|(?<![a-z])(?:not|(?:less|more|greater|fewer|larger|smaller|other)\sthan))\s?[$€£¥₹(]*$"
)
_TANGLED_AFTER = re.compile(
    r"\)?\s?(?:[-+*÷/x|;<>]\s?(?=[$€£¥₹(]*[0-9])"
    r"|(?:to|through|by|point|mod|times|plus|minus|(?:more|less|fewer)\sthan)\s(?=[$€£¥₹]?[0-9])"
    r"|[-+*/<>^]=?\s?(?=√|[A-Za-z](?:$|[\s)^*/+=<>-]*$))"
    r"|(?:squared|cubed|factorial|choose|halves|thirds|quarters|fifths|below zero)(?![a-z])|half$)"
)
_SYMBOL_AFTER = re.compile(r"\s?([A-Za-z]+)(?![A-Za-z'])")
_UNITS_OR_NOUNS = COUNTED | UNITS.keys()
_ATTACHED = frozenset({"st", "nd", "rd", "th", "am", "pm", "AM", "PM"})
_SPACED_LETTERS = frozenset("aAImgshlL")
_LIST_AFTER = re.compile(r"(?:,|,? and|,? or|;)\s[$€£¥₹]?-?[0-9][0-9,.]*+%?\s*(?:$|[.,;)\]}]|and\b|or\b)")
_QUALIFIER_BEFORE = re.compile(
    r"(?<![a-z])(?:in|after|for|by|at|the|of|from|to|with|within|over|every|each|per|than|these|those|both|all|next|first"
    r"|last|another|when|if|between|on|day|week|step|year|level|number|because|since|as)\s[$€£¥₹]?$",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"(?i)(?<![a-z])(?:so|therefore|thus|hence|which (?:means|is|equals|makes))(?![a-z])")
_EQUALS = re.compile(r"=|≈|(?<![a-z])equals(?![a-z])", re.IGNORECASE)
_LEAD_IN = re.compile(
    r"[\s$€£¥₹~≈=:(\[\"'#*_]*+(?:(?:about|approximately|approx\.?|around|roughly|exactly|only|Rs\.?|USD|EUR|INR)\s)?",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"^[^0-9=<>!≈]{1,40}=")
_UNITS_AFTER = re.compile(
    r"(?>(?:\s?[^\W\d_][^\s\d,;:!?()=+*/^]{0,30}+|\s?[-/°$€£¥₹²³]|\s?\^[23]|\s?\([^()0-9]{0,60}+\)){0,8})[\s.!*_$)\]\"']*+"
)
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])|\n")
_DIGITS_AHEAD = re.compile(r".*(?=[0-9])", re.DOTALL)
_ENUMERATION = re.compile(r"[.)]\s+[^\W\d_]")


@lru_cache(maxsize=8192)
def parse_quantity(text: str) -> Quantity | None:
    """Read a text that is one number with at most a lead-in and units, such as a reference answer; else None."""
    line = _ASSIGNMENT.sub("", plain(text[:LONGEST]).strip())
    start = _lead_in(line)
    measure = _MEASURE.match(line, start)
    if measure and (quantity := _measured(measure)) and not _numbers(line[measure.end() :]):
        return quantity
    match = _NUMBER.match(line, start)
    if match is None:
        return _in_words(line[start:])
    alone = _UNITS_AFTER.fullmatch(line, match.end()) and not _ENUMERATION.match(line, match.end())
    return _standing_alone(match) if alone else None


def read_quantity(text: str) -> Quantity | None:
    """Return the number that a statement of an answer gives, or None if it gives none or several.

    Tried in order: what follows the last `so`; of several sentences the first with a number; what follows the last `=`;
    the number it begins with; the first number that qualifies nothing, as `3` does in `after 3 days`.
    """
    line = plain(text[:LONGEST])
    found = _numbers(line)
    if not found:
        return _in_words(line[_lead_in(line) :])
    return found[0].quantity if len(found) == 1 else _stated(line, found)


def leading_quantity(text: str) -> Quantity | None:
    """Return the number that a text begins with, whatever follows it; None if it begins with none that stands alone."""
    line = plain(text[:LONGEST])
    found = _numbers(line)
    if not found or found[0].start > _lead_in(line) or _LIST_AFTER.match(line, found[0].end):
        return None
    return found[0].quantity


def last_quantity(text: str) -> Quantity | None:
    """Return the last number of a text that stands alone, or the first after the `=` of its sentence.

    The result of `120 / 24 = 5 hours to read 120 pages` is 5.
    """
    for written in reversed(text[-LONGEST:].splitlines()):
        line = plain(written.lstrip("> "))
        known = [number.quantity for number in _numbers(line) if number.quantity is not None]
        if known:
            conclusion = _tail(_CONCLUSION, _tail(_SENTENCE_END, line))
            result = _tail(_EQUALS, conclusion)
            after = [number.quantity for number in _numbers(result) if number.quantity is not None]
            return after[0] if after and result != conclusion else known[-1]
    return None


def _tail(border: re.Pattern[str], line: str) -> str:
    """Return what follows the last border with a digit after it, or the whole line."""
    digits = _DIGITS_AHEAD.match(line)
    ends = [match.end() for match in border.finditer(line, 0, digits.end() if digits else 0)]
    return line[ends[-1] :] if ends else line


def _stated(line: str, found: list[_Found]) -> Quantity | None:
    """Choose the answer among several numbers."""
    found = _in_one_sentence(line, _after_last(_CONCLUSION, line, found))
    found = _after_last(_EQUALS, line, found)
    first = found[0]
    if _LIST_AFTER.match(line, first.end):
        return None
    if first.start <= _lead_in(line):
        return first.quantity
    known = [number for number in found if number.quantity is not None]
    free = [number for number in known if not _QUALIFIER_BEFORE.search(line[max(0, number.start - 12) : number.start])]
    return free[0].quantity if free else known[-1].quantity if known else None


def _after_last(border: re.Pattern[str], line: str, found: list[_Found]) -> list[_Found]:
    """Return the numbers after the last border that is followed by one, or all numbers."""
    ends = [match.end() for match in border.finditer(line, 0, found[-1].start)]
    return [number for number in found if number.start >= ends[-1]] if ends else found


def _in_one_sentence(line: str, found: list[_Found]) -> list[_Found]:
    """Return the numbers in the sentence of the first one."""
    end = _SENTENCE_END.search(line, found[0].end)
    return [number for number in found if number.start < end.start()] if end else found


def _numbers(line: str) -> list[_Found]:
    """Return the numbers of a plain text; a measure in two units counts as one number."""
    found = [_Found(match.start(), match.end(), _standing_alone(match)) for match in _NUMBER.finditer(line)]
    if len(found) < 2:
        return found
    measures = [_Found(*match.span(), quantity) for match in _MEASURE.finditer(line) if (quantity := _measured(match))]
    for measure in measures:
        found = [number for number in found if number.end <= measure.start or number.start >= measure.end]
    return sorted(found + measures) if measures else found


def _standing_alone(match: re.Match[str]) -> Quantity | None:
    """Return a number that stands alone; None if it is part of a calculation, a range or the like."""
    line, start = match.string, match.start() + len(match["sign"] or "")
    tangled = _TANGLED_BEFORE.search(line[max(0, start - 24) : start]) or _TANGLED_AFTER.match(line, match.end())
    return None if tangled or _symbol_after(line, match.end()) else _quantity_of(match)


def _symbol_after(line: str, end: int) -> bool:
    """Whether letters after a number are symbols that it multiplies, rather than a unit or a word."""
    found = _SYMBOL_AFTER.match(line, end)
    if found is None:
        return False
    run, attached = found[1], found.start(1) == end
    if len(run) == 1:
        return attached or run not in _SPACED_LETTERS
    return attached and len(run) < 4 and not (run in _UNITS_OR_NOUNS or run in _ATTACHED)


def _lead_in(line: str) -> int:
    """Return the position after the signs and words, such as `about`, that lead in a plain text."""
    match = _LEAD_IN.match(line)
    return match.end() if match else 0
