# ruff: noqa: RUF001 - the signs that look alike are what this module is about
"""Normalisation of texts, so that equal meanings read the same: typography, scripts, Markdown, LaTeX, its braces."""

import re
import sys
import unicodedata
from collections.abc import Callable


def translation(pairs: str, spaces: str, dropped: str) -> dict[int, str]:
    """Return a table for `str.translate`; `pairs` alternates signs and the text that replaces each of them."""
    words = pairs.split()
    table = {**dict(zip(words[::2], words[1::2], strict=True)), spaces: " ", dropped: ""}
    return {ord(sign): plain for signs, plain in table.items() for sign in signs}


_TYPOGRAPHY = """
‘’‚‛ʼʹ′＇´ '  “”„‟«»″＂ "  −‐‑‒–—―﹣－ -  … ...  。｡． .  ，、､٬ ,  ： :  ； ;  ？ ?  ！ !  ٫ .  ٪ %
（ (  ） )  【［「『 [  】］」』 ]
"""
_WIDE_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000"
_INVISIBLE = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufe0e\ufe0f\ufeff"
)
_TYPOGRAPHIC = translation(_TYPOGRAPHY, _WIDE_SPACES, _INVISIBLE)
_FULL_WIDTH = re.compile("[\uff01-\uff5e]+")
_BORDER = re.compile(r"(?<=[0-9A-Za-z)\]%])(?=[^\W0-9A-Za-z_])|(?<=[^\W0-9A-Za-z_])(?=[-+(\[$]?[0-9A-Za-z])")


def to_keyboard_signs(text: str) -> str:
    """Replace signs by those of a keyboard: quotation marks, dashes, full-width letters, any script's digits."""
    if text.isascii():
        return text
    text = _FULL_WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text.translate(_TYPOGRAPHIC))
    return "".join(c if c.isascii() or (digit := unicodedata.decimal(c, None)) is None else str(digit) for c in text)


def separate_scripts(text: str) -> str:
    """Use keyboard signs, and put spaces where a script without spaces meets Latin letters or digits: `共有18个`."""
    if text.isascii():
        return text
    return _BORDER.sub(lambda border: " " if _is_border(border.string, border.start()) else "", to_keyboard_signs(text))


def _is_border(text: str, position: int) -> bool:
    return not (is_spaced(text[position - 1]) and is_spaced(text[position]))


def is_spaced(character: str) -> bool:
    """Whether a character's script separates words, and words from numbers, by spaces."""
    return character.isascii() or unicodedata.category(character) not in ("Lo", "Mn", "Mc", "Lm")


_SYMBOL = "√"
"""Placeholder in a plain text for what makes a number symbolic: a root, π, a function, a broken fraction."""

_SIGNS = f"−‐‑‒–﹣－ -  ⁄∕ /  ×⋅·∗ *  ≃≅ ≈  π∛∞±∓ {_SYMBOL}  ≤⩽≦ <  ≥⩾≧≠ >"
_FRACTIONS = "½ 1/2  ⅓ 1/3  ⅔ 2/3  ¼ 1/4  ¾ 3/4  ⅕ 1/5  ⅖ 2/5  ⅗ 3/5  ⅘ 4/5  ⅙ 1/6  ⅚ 5/6  ⅛ 1/8  ⅜ 3/8  ⅝ 5/8  ⅞ 7/8"
_PLAIN = translation(_SIGNS, _WIDE_SPACES + "—―", "\u200b\u200e\u200f\u2060\ufeff") | {
    sign: f" {fraction}" for sign, fraction in translation(_FRACTIONS, "", "").items()
}
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

_Replacement = str | Callable[[re.Match[str]], str]

_LATEX: tuple[tuple[re.Pattern[str], _Replacement], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"~", " "),
        (r"\\[$%#&]", lambda match: match[0][1]),
        (r"\\[dtc]?frac\s*\{([^{}\\]*+)\}\s*\{([^{}\\]*+)\}", r" \1/\2"),
        (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boldsymbol)\s*\{([^{}]*+)\}", r" \1"),
        (r"\\(?:times|cdot)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\(?:approx|simeq)(?![a-zA-Z])", "≈"),
        (r"\\(?:g|l)(?:eq?(?:slant)?|t)(?![a-zA-Z])|\\neq?(?![a-zA-Z])", ">"),
        (r"\^\s*\{([^{}]*+)\}", r"^\1"),
        (r"\^?\\(?:circ|degree)(?![a-zA-Z])", "°"),
        (
            r"\\(?:sqrt|pi|theta|alpha|beta|infty|log|ln|sin|cos|tan|pm|mp|sum|int|[dt]?binom|[dtc]?frac)(?![a-zA-Z])",
            _SYMBOL,
        ),
        (r"\\(?:[a-zA-Z]+|.)|[{}]", " "),
    )
)
_SYMBOLS = re.compile(r"(?<![A-Za-z])(?:sqrt|pi|log|ln|sin|cos|tan|exp)(?![A-Za-z])")
_TAGS = re.compile(r"<<[^<>\n]{0,200}>>|</?[A-Za-z][^<>\n]{0,60}>")
_SPACES = re.compile(r"[ \t]{2,}")
_POWER = re.compile(r"(?<=[0-9])\*\*(?=-?[0-9])")
_SPACED_SIGN = re.compile(r"(?<![0-9)%] )(?<![0-9)%])([-+]) (?=[0-9]+/[0-9])")


def plain(text: str) -> str:
    """Return the text in ASCII signs, without emphasis and LaTeX, fractions as `1/2`, roots and the like as `√`."""
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda match: "^" + match[0].translate(_RAISED), text)
        text = separate_scripts(text.translate(_PLAIN))
    if "<" in text:
        text = _TAGS.sub(" ", text)
    if "\\" in text or "{" in text or "~" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    if "*" in text or "_" in text or "`" in text:
        text = _POWER.sub("^", text).replace("**", "").replace("__", "").replace("`", "")
    if "/" in text:
        text = _SPACED_SIGN.sub(r"\1", text)
    return _SPACES.sub(" ", _SYMBOLS.sub(_SYMBOL, text))


_BRACES = re.compile(r"\\[{}\\]|[{}]")


def closing_brace(text: str, opening: int, end: int = sys.maxsize) -> int | None:
    """Return the position of the brace that closes the one at `opening`, or None."""
    if not text.startswith("{", opening):
        return None
    depth = 0
    for match in _BRACES.finditer(text, opening, end):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return None
