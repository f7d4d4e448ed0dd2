# ruff: noqa: RUF001 - signs that look like letters are what is planted
"""Answers planted by mechanical edits of references: wrong ones that must not be graded right, and right rewritings."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

REFERENCES = Path(__file__).parents[1] / "tests" / "cases" / "math_references.txt"

Edit = Callable[[str, random.Random], str | None]


class Planted(NamedTuple):
    """A reference, an answer made from it by an edit, and whether the answer is right."""

    reference: str
    answer: str
    edit: str
    is_right: bool


def planted(seed: int = 7, wrong_each: int = 10, right_each: int = 5) -> Iterator[Planted]:
    """Yield wrong and right answers to every reference."""
    dice = random.Random(seed)
    for reference in REFERENCES.read_text("utf-8").splitlines():
        yield from _some(reference, WRONG, False, wrong_each, dice)
        yield from _some(reference, RIGHT, True, right_each, dice)


def _some(reference: str, edits: dict[str, Edit], is_right: bool, count: int, dice: random.Random) -> Iterator[Planted]:
    seen = {reference}
    names = list(edits)
    for name in names * 4 if not is_right else names:
        answer = edits[name](reference, dice)
        if answer is not None and answer not in seen and count:
            seen.add(answer)
            count -= 1
            yield Planted(reference, answer, name, is_right)


# Edits that make an answer wrong.

_PROTECTED = re.compile(r"\\text\{[^{}]*\}|\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\[a-zA-Z]+|(?<=sqrt)\[3\]")


def _places(pattern: str, reference: str) -> list[re.Match[str]]:
    """Return the places of a pattern outside commands and text."""
    barred = [match.span() for match in _PROTECTED.finditer(reference)]
    return [
        match
        for match in re.finditer(pattern, reference)
        if not any(start <= match.start() < end for start, end in barred)
    ]


def _replaced(reference: str, match: re.Match[str], new: str) -> str:
    return reference[: match.start()] + new + reference[match.end() :]


def change_digit(reference: str, dice: random.Random) -> str | None:
    """Change one digit."""
    if "binom" in reference:  # choosing those that stay is the same number
        reference = re.sub(r"(?<=\{)([0-9]+)(?=\}\{)", lambda match: match[0] + "0", reference)
        return reference
    places = [match for match in _places("[0-9]", reference) if not reference[: match.start()].endswith("cm}^")]
    if not places:
        return None
    place = dice.choice(places)
    return _replaced(reference, place, dice.choice([digit for digit in "123456789" if digit != place[0]]))


def change_sign(reference: str, dice: random.Random) -> str | None:
    """Invert a sign, or put one before the first value."""
    places = [match for match in _places(r"[-+]", reference) if "{-1}" not in reference[match.start() - 1 :][:4]]
    if places:
        place = dice.choice(places)
        return _replaced(reference, place, "+" if place[0] == "-" else "-")
    return f"-{reference}" if re.match(r"[1-9a-z\\]", reference) and _is_single(reference) else None


def _is_single(reference: str) -> bool:
    barred = r"text|pm|begin|lfloor|\$|[,=<>:]|leq|geq|neq|\{\\|cup"
    return re.search(barred, reference) is None


def change_variable(reference: str, dice: random.Random) -> str | None:
    """Replace one occurrence of a variable by another letter."""
    places = _places(r"(?<![A-Za-z])[abkntxy](?![A-Za-z])|(?<=[0-9xa])[by]", reference)
    if not places:
        return None
    place = dice.choice(places)
    return _replaced(reference, place, dice.choice([letter for letter in "zwmp" if letter != place[0]]))


def change_bound(reference: str, dice: random.Random) -> str | None:
    """Open a closed bound, or close an open one; turn a relation strict."""
    if re.search(r"\\leq|\\geq", reference):
        return reference.replace(r"\leq", "<").replace(r"\geq", ">")
    if re.search(r"[<>]", reference):
        return reference.replace("<", r"\leq ").replace(">", r"\geq ")
    if re.fullmatch(r"\([^(),]*,[^(),]*\)", reference) and "infty" not in reference:
        return "[" + reference[1:-1] + "]"
    places = list(re.finditer(r"[\[(](?![^,]*infty)(?=[^()\[\]]*,)", reference))
    if "[" not in reference and "]" not in reference and "infty" not in reference:
        return None
    if not places or "sqrt[" in reference or "begin" in reference:
        return None
    place = dice.choice(places)
    return _replaced(reference, place, "[" if place[0] == "(" else "(")


def change_order(reference: str, _dice: random.Random) -> str | None:
    """Swap what has an order: coordinates, ratios, numerator and denominator."""
    if match := re.fullmatch(r"\(([^(),]*),([^(),]*)\)", reference):
        return f"({match[2]},{match[1]})" if "infty" not in reference else None
    if match := re.fullmatch(r"(\d+):(\d+)", reference):
        return f"{match[2]}:{match[1]}"
    if match := re.fullmatch(r"(-?)\\d?frac\{([^{}]*)\}\{([^{}]*)\}", reference):
        return rf"{match[1]}\frac{{{match[3]}}}{{{match[2]}}}"
    if match := re.search(r"\{(p|b)matrix\}([^\\&]*)(\\\\|&)([^\\&]*)(?=\\\\|&|\\end)", reference):
        swapped = f"{match[4]}{match[3]}{match[2]}"
        return reference.replace(f"{match[2]}{match[3]}{match[4]}", swapped, 1)
    return None


def change_factor(reference: str, dice: random.Random) -> str | None:
    """Multiply by two or ten, or raise a power."""
    if not _is_single(reference) or reference.startswith(("(", "[", "0", "|")) or "_" in reference or "!" in reference:
        return None
    if re.search(r"[+-]", reference[1:]) or re.match(r"\d+\\frac|-?\d", reference):
        return None
    return dice.choice(["2", "10", "3"]) + r" \cdot " + reference.lstrip("-") if reference != "0" else None


def keep_unit(reference: str, dice: random.Random) -> str | None:
    """Keep the unit and change the number."""
    if not re.search(r"text|\\\$|%|circ", reference) or not _places("[0-9]", reference):
        return None
    return change_digit(reference, dice)


def drop_term(reference: str, _dice: random.Random) -> str | None:
    """Leave out the last term of a sum, a list, a set, or a factor."""
    if match := re.fullmatch(r"(.*[0-9a-z}!])\s*[-+]\s*[^-+,=()\[\]{}<>|]+", reference):
        return match[1] if match[1].count("{") == match[1].count("}") and "pm" not in reference else None
    if match := re.fullmatch(r"(\\\{.*),[^,]*\\\}", reference):
        return match[1] + r"\}"
    if match := re.fullmatch(r"([^()\[\]=<>{}]*),[^,()\[\]{}]*", reference):
        return match[1] if not reference.startswith("\\$") and not re.fullmatch(r"[\d,]*", reference[-4:]) else None
    if match := re.fullmatch(r"(\d+)(?:\\sqrt\{.*\}|\\pi|[a-z]+)", reference):
        return match[1]
    return None


def add_symbol(reference: str, dice: random.Random) -> str | None:
    """Multiply by a symbol that the reference lacks, or add one."""
    if not _is_single(reference) or reference.startswith(("(", "[", "|", "0")):
        return None
    return reference + dice.choice(["q", " q", r"\sqrt{q}", "+q", " - q", "^q"])


def add_root(reference: str, dice: random.Random) -> str | None:
    """Multiply by a root, a constant or a factorial, in one of the ways they are written."""
    if not _is_single(reference) or reference.startswith(("(", "[", "|", "0")) or not re.search(r"[3-9]$", reference):
        return None
    return reference + dice.choice([r"\sqrt{7}", "√7", r"\sqrt(7)", " sqrt(7)", r"\pi", "π", "!", "i", "_9", "^3"])


def add_item(reference: str, dice: random.Random) -> str | None:
    """Add a second value."""
    if not _is_single(reference) or reference.startswith(("(", "[", "|")):
        return None
    return reference + dice.choice([", 977", r" \text{ or } 977", r" \pm 977", r" \text{ to } 977", "; 977"])


WRONG: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        change_digit,
        change_sign,
        change_variable,
        change_bound,
        change_order,
        change_factor,
        keep_unit,
        drop_term,
        add_symbol,
        add_root,
        add_item,
    )
}


# Rewritings that leave an answer right.


def in_sentence(reference: str, _dice: random.Random) -> str:
    """Put it between dollars, with other spacing and `\\left` and `\\right` brackets."""
    grown = re.sub(r"(?<!sqrt)(?<!\\)([\[(])", r"\\left\1", reference)
    grown = re.sub(r"(?<!sqrt\[3)(?<!\\)([\])])", r"\\right\1", grown)
    return f"${grown.replace(',', ', ') if not re.search(r'[0-9],[0-9]{3}', reference) else grown}$"


def in_other_commands(reference: str, _dice: random.Random) -> str | None:
    """Use synonymous commands."""
    new = (
        reference.replace(r"\frac", r"\dfrac")
        .replace(r"\leq", r"\le")
        .replace(r"\geq", r"\ge")
        .replace(r"\cup", r" \cup ")
    )
    new = new.replace("pmatrix", "bmatrix").replace(r"\times", r"\cdot").replace(r"\text{ and }", ",")
    return new if new != reference else re.sub(r"(?<=[0-9a-z])([-+=<>])", r" \1 ", reference)


def in_unicode(reference: str, _dice: random.Random) -> str | None:
    """Use Unicode characters."""
    new = re.sub(r"\\sqrt\{([0-9]+)\}", "√\\1", reference)
    signs = {
        r"\pi": "π",
        r"\infty": "∞",
        r"\cup": "∪",
        r"\leq": "≤",
        r"\geq": "≥",
        r"\pm": "±",
        r"\neq": "≠",
        r"\theta": "θ",
    }
    signs |= {r"\alpha": "α", r"\beta": "β", r"\times": "×", r"^\circ": "°", "^2": "²", "^3": "³"}
    for command, sign in signs.items():
        new = new.replace(command, sign)
    return re.sub(r"(?<![\d^{])-(?=[0-9])", "\u2212", new)


def in_plain_text(reference: str, dice: random.Random) -> str | None:
    """Write it as people type it."""
    if re.search(
        r"begin|binom|overline|\\log_|\\frac\{[^{}]*\{|text|lfloor|\\tan|\\ln|\d\\frac|\^\\|\\sin\^|\\cos 2|\\sin x\\",
        reference,
    ):
        return None
    new = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", reference)
    new = re.sub(r"\\sqrt\[3\]\{([^{}]*)\}", r"cbrt(\1)", new)
    new = re.sub(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", new)
    new = re.sub(r"\^\{([^{}]*)\}", r"^(\1)", new).replace("^", dice.choice(["^", "**"]))
    signs = {r"\infty": "inf", r"\leq": "<=", r"\geq": ">=", r"\times": "*", r"\neq": "!=", r"\{": "{", r"\}": "}"}
    for command, plain in (signs | {rf"\{name}": name for name in ("pi", "theta", "alpha", "beta")}).items():
        new = new.replace(command, f" {plain} " if plain.isalpha() else plain)
    new = re.sub(r"(?<=[0-9a-z])(?=sqrt|cbrt)", "*", new)
    return new if "\\" not in new else None


def with_name(reference: str, dice: random.Random) -> str | None:
    """Write it as the value of a name."""
    if re.search(r"[=<>:]|leq|geq|neq|text|[A-Z_]", reference):
        return None
    return f"{dice.choice('uvQ')} = {reference}"


def with_unit(reference: str, dice: random.Random) -> str | None:
    """Add a unit to a plain value."""
    if not re.fullmatch(r"-?\d+(?:\.\d+)?|\d*\\sqrt\{\d+\}|\\frac\{\d+\}\{\d+\}|\d+\\pi", reference):
        return None
    return reference + dice.choice([r"\text{ cm}", r" \text{ square units}", r"\text{ dollars}", r"\ \mathrm{km}"])


def other_form(reference: str, _dice: random.Random) -> str | None:
    """Expand a fraction, or reorder an unordered list."""
    if match := re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", reference):
        return rf"{match[1]}\frac{{{3 * int(match[2])}}}{{{3 * int(match[3])}}}"
    if match := re.fullmatch(r"(\\\{)([^,]+),(.*)(\\\})", reference):
        return f"{match[1]}{match[3]},{match[2]}{match[4]}"
    if match := re.fullmatch(r"([a-z0-9^]+)\+([a-z0-9^]+)", reference):
        return f"{match[2]}+{match[1]}"
    if match := re.fullmatch(r"([^,=(){}\[\]]+),([^,(){}\[\]]+)", reference):
        return f"{match[2]}, {match[1]}" if not re.fullmatch(r"\d{3}", match[2]) else None
    if re.fullmatch(r"-?\d+", reference):
        return rf"\frac{{{4 * int(reference)}}}{{4}}"
    return None


RIGHT: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (in_plain_text, in_unicode, other_form, with_name, with_unit, in_other_commands, in_sentence)
}
