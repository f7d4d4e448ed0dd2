# ruff: noqa: RUF001 - the signs that look alike are what this module is about
"""Notation: making a text with typography, Markdown and LaTeX plain, so that numbers in it read alike."""

import re
from collections.abc import Callable

SYMBOL = "√"
"""What stands in a plain text for whatever makes a number symbolic: a root, π, a function, a broken fraction."""

SIGNS = {
    "−‐‑‒–﹣－": "-",
    "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000—―": " ",
    "\u200b\u200e\u200f\u2060\ufeff": "",
    "⁄∕": "/",
    "×⋅·∗": "*",
    "≃≅": "≈",
    "π∛∞": SYMBOL,
}
FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
PLAIN = str.maketrans(
    {sign: plain for signs, plain in SIGNS.items() for sign in signs}
    | {sign: f" {fraction}" for sign, fraction in FRACTIONS.items()}
    | dict(zip("０１２３４５６７８９．，％＄／：＝", "0123456789.,%$/:=", strict=True))
)
SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

Replacement = str | Callable[[re.Match[str]], str]

LATEX: tuple[tuple[re.Pattern[str], Replacement], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[$%#&]", lambda match: match[0][1]),
        (r"\\[dtc]?frac\s*\{([^{}\\]*+)\}\s*\{([^{}\\]*+)\}", r" \1/\2"),
        (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boldsymbol)\s*\{([^{}]*+)\}", r" \1"),
        (r"\\(?:times|cdot)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\(?:approx|simeq)(?![a-zA-Z])", "≈"),
        (r"\^\s*\{([^{}]*+)\}", r"^\1"),
        (r"\^?\\(?:circ|degree)(?![a-zA-Z])", "°"),
        (
            r"\\(?:sqrt|pi|theta|alpha|beta|infty|log|ln|sin|cos|tan|pm|mp|sum|int|[dt]?binom|[dtc]?frac)(?![a-zA-Z])",
            SYMBOL,
        ),
        (r"\\(?:[a-zA-Z]+|.)|[{}]", " "),
    )
)
SYMBOLS = re.compile(r"(?<![A-Za-z])(?:sqrt|pi)(?![A-Za-z])")
POWER = re.compile(r"(?<=[0-9])\*\*(?=-?[0-9])")
SPACED_SIGN = re.compile(r"(?<![0-9)%] )(?<![0-9)%])([-+]) (?=[0-9]+/[0-9])")


def plain(text: str) -> str:
    """Return the text in ASCII signs, without emphasis and LaTeX, fractions as `1/2`, roots and the like as `√`."""
    if not text.isascii():
        text = SUPERSCRIPTS.sub(lambda match: "^" + match[0].translate(RAISED), text.translate(PLAIN))
    if "\\" in text or "{" in text:
        for pattern, replacement in LATEX:
            text = pattern.sub(replacement, text)
    if "*" in text or "_" in text or "`" in text:
        text = POWER.sub("^", text).replace("**", "").replace("__", "").replace("`", "")
    if "/" in text:
        text = SPACED_SIGN.sub(r"\1", text)
    return SYMBOLS.sub(SYMBOL, text) if "pi" in text or "sqrt" in text else text
