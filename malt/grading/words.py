"""English words: numbers, read whole or not at all (`minus two and a half`), units, and small words."""

import re
from collections.abc import Sequence
from fractions import Fraction

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TEN_TIMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_ONES.split())}
_TENS = {word: 10 * tens for tens, word in enumerate(_TEN_TIMES.split(), start=2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    part: parts
    for parts, spellings in {
        2: "half halves", 3: "third thirds", 4: "quarter quarters fourth fourths", 5: "fifth fifths",
        6: "sixth sixths", 7: "seventh sevenths", 8: "eighth eighths", 9: "ninth ninths", 10: "tenth tenths",
        12: "twelfth twelfths", 100: "hundredth hundredths", 1000: "thousandth thousandths",
    }.items()
    for part in spellings.split()
}  # fmt: skip
NUMBER_WORDS = frozenset([*_SMALL, *_TENS, *_SCALES, *_PARTS, "hundred", "dozen"])
"""Words that are numbers or parts of numbers."""


def number_in_words(text: str) -> Fraction | None:
    """Return the number that a text spells in words, or None if any word does not belong to it."""
    words = re.findall(r"[a-z]+|[^a-z\s,-]", text.lower())
    if words[:1] in (["minus"], ["negative"]):
        value = _unsigned(words[1:])
        return None if value is None else -value
    return _unsigned(words)


def _unsigned(words: Sequence[str]) -> Fraction | None:
    if "point" in words:
        return _decimal(words, words.index("point"))
    if "and" in words and words[-1] in _PARTS:
        split = len(words) - 1 - words[::-1].index("and")
        whole, part = _cardinal(words[:split]), _part(words[split + 1 :])
        return None if whole is None or part is None else whole + part
    if words and words[-1] in _PARTS:
        return _part(words)
    if words and words[-1] == "dozen":
        count = 6 if words[:-1] == ["half", "a"] else _count(words[:-1], 12)
        return None if count is None else Fraction(count)
    whole = _cardinal(words)
    return None if whole is None else Fraction(whole)


def _decimal(words: Sequence[str], point: int) -> Fraction | None:
    whole = _cardinal(words[:point]) if point else 0
    digits = [_SMALL.get(word, 10) for word in words[point + 1 :]]
    if whole is None or not digits or max(digits) > 9:
        return None
    return whole + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def _part(words: Sequence[str]) -> Fraction | None:
    """Read `half`, `a third` or `two thirds`; an ordinal such as `twenty first` is none."""
    count = _count(words[:-1])
    return None if count is None else Fraction(count, _PARTS[words[-1]])


def _count(words: Sequence[str], of: int = 1) -> int | None:
    count = 1 if not words or list(words) in (["a"], ["an"]) else _cardinal(words)
    return None if count is None else count * of


def _cardinal(words: Sequence[str]) -> int | None:
    """Read a whole number, its scales from large to small."""
    total, position, last = 0, 0, 10**15
    while position < len(words):
        value, position = _below_scale(words, position)
        scale = _SCALES.get(words[position], 0) if position < len(words) else 0
        if value is None or (position < len(words) and not 0 < scale < last):
            return None
        total, last = total + value * (scale or 1), scale
        if scale:
            position += 1
            position += words[position : position + 1] == ["and"] and position + 1 < len(words)
    return total if words else None


def _below_scale(words: Sequence[str], position: int) -> tuple[int | None, int]:
    """Read the number before a scale, such as `three hundred and five`; return it and the position after it."""
    value, end = _below_hundred(words, position)
    if words[end : end + 1] != ["hundred"]:
        bare = words[end] in _SCALES if end < len(words) else False
        return (1 if value is None and bare else value), end
    value, end = (1 if value is None else value) * 100, end + 1
    rest, after = _below_hundred(words, end + (words[end : end + 1] == ["and"]))
    return (value, end) if rest is None else (value + rest, after)


def _below_hundred(words: Sequence[str], position: int) -> tuple[int | None, int]:
    word = words[position] if position < len(words) else ""
    following = words[position + 1] if position + 1 < len(words) else ""
    if word in ("a", "an") and (following == "hundred" or following in _SCALES):
        return 1, position + 1
    if word in _TENS:
        single = _SMALL.get(following, 0)
        return (_TENS[word] + single, position + 2) if 0 < single < 10 else (_TENS[word], position + 1)
    return (_SMALL[word], position + 1) if word in _SMALL else (None, position)


# Words around a value.

_UNITS = """
meter meters metre metres m; centimeter centimeters centimetre centimetres cm;
millimeter millimeters millimetre millimetres mm; kilometer kilometers kilometre kilometres km;
nanometer nanometers nanometre nanometres nm; inch inches in; foot feet ft; yard yards yd; mile miles mi; gram grams g;
kilogram kilograms kg; milligram milligrams mg; pound pounds lb lbs; ounce ounces oz; ton tons tonne tonnes;
second seconds sec secs s; minute minutes min mins; hour hours hr hrs h; day days; week weeks; month months;
year years yr yrs; liter liters litre litres l L; milliliter milliliters millilitre millilitres ml mL;
gallon gallons gal; quart quarts qt; pint pints; cup cups; mph; knot knots; newton newtons N; joule joules J;
kilojoule kilojoules kJ; watt watts W; kilowatt kilowatts kW; volt volts V; ampere amperes amp amps A; ohm ohms;
hertz Hz; kilohertz kHz; megahertz MHz; pascal pascals Pa; kilopascal kilopascals kPa; atmosphere atmospheres atm;
kelvin kelvins K; celsius C; fahrenheit F; calorie calories cal; kilocalorie kilocalories kcal; mole moles mol;
degree degrees deg; radian radians rad; dollar dollars USD usd; cent cents; euro euros EUR eur;
pound-sterling GBP gbp quid; yen JPY jpy; rupee rupees INR inr Rs; percent pct; unit units; acre acres;
hectare hectares ha; bit bits; byte bytes
"""
UNITS = {spelling: line.split()[0] for line in _UNITS.split(";") for spelling in line.split()}
"""Unit that each spelling stands for."""


_COUNTED_TEXT = """
ways students people persons person items coins sides digits steps points cards balls marbles apples eggs books
games numbers integers solutions pairs cookies pages tickets boxes bags pieces triangles squares vertices edges
diagonals teams members players children boys girls men women cars trees flowers cubes tiles bottles
"""
COUNTED = frozenset(_COUNTED_TEXT.split())
"""Common nouns of things that are counted; nouns of the question itself are accepted too."""

FILLERS = frozenset({"of", "a", "an", "the", "in", "total", "each", "altogether"})
"""Words after a value that do not change it."""

_TURNING_TEXT = """
not no never less fewer more greater than least most above below under over between to through until from or and
either neither nor but except without unless if when where maybe perhaps possibly about plus minus times divided
multiplied mod modulo remainder base square squared cube cubed root cubic half halves third thirds quarter quarters
fourth fifth fifths sixth tenth tenths hundredth hundredths dozen score hundred thousand million billion trillion
negative positive factorial choose pair couple per wrong false incorrect minimum maximum any all every some
only exceeds exceeding at up down out versus vs by approximately short infinite undefined
"""
TURNING = frozenset(_TURNING_TEXT.split())
"""Words that change a number's meaning: a value beside one is unread unless the reader knows that word."""
