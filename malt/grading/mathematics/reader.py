r"""Reading mathematics whole: a text becomes a `Reading` of all of its tokens, or `Unread` is raised.

The table `_OPENINGS` has the function that reads on after each `\command` and opening bracket. This runs only in grader
processes: SymPy is slow, and on a hostile expression it may never end.
"""

import re
from collections.abc import Callable, Mapping

import sympy
from sympy import Expr, Integer, Rational, Symbol

from malt.grading.mathematics.parser import Parser, join_items
from malt.grading.mathematics.readings import (
    DEGREE,
    Chain,
    Grid,
    Items,
    MathValue,
    Reading,
    Region,
    Words,
    apply,
    check_finite,
    check_size,
    expr_of,
    make_pair,
    raise_to,
    split_signs,
    symbols_in,
)
from malt.grading.mathematics.tokens import FUNCTIONS, GREEK, Token, Unread, tokenize
from malt.grading.words import COUNTED, FILLERS, UNITS, number_in_words

_MOST_TOKENS = 2_000


def read_math(text: str, nouns: frozenset[str] = frozenset(), known: frozenset[str] = frozenset()) -> Reading:
    """Read a whole text as mathematics, or raise `Unread`.

    `nouns` are words that may stand beside a value, `known` are symbols that may cancel out.
    """
    tokens = _tokens_of(text, nouns)
    if not tokens or len(tokens) > _MOST_TOKENS:
        raise Unread("nothing" if not tokens else f"{len(tokens)} tokens")
    if all(token.kind == "word" or token.text in ("-", "'", ",", "&", "(", ")") for token in tokens):
        return _read_words(tokens, nouns)
    parser = Parser(tokens, nouns=nouns, openings=_OPENINGS)
    reading = _read_to_end(parser)
    if lost := parser.symbols - symbols_in(reading) - known:
        raise Unread(f"{', '.join(sorted(lost))} cancels out")
    return split_signs(reading)


def _tokens_of(text: str, nouns: frozenset[str]) -> list[Token]:
    tokens = tokenize(_leave_subject_out(text), nouns)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "!!"):
        tokens.pop()
    return tokens


def _read_to_end(parser: Parser) -> Reading:
    reading = parser.statement()
    if parser.peek().kind != "end":
        raise Unread(f"what stands after {parser.read_so_far()!r}")
    return reading


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
    """Remove a sentence's subject and verb, `The area is`; a negated one stays, which makes the text unread."""
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


# Functions that read on after a command or an opening bracket.

_NUMBER_SETS = {
    "R": sympy.S.Reals, "Z": sympy.S.Integers, "N": sympy.S.Naturals, "Q": sympy.S.Rationals, "C": sympy.S.Complexes,
}  # fmt: skip
_CONSTANTS = {"pi": sympy.pi, "infty": sympy.oo, "deg": DEGREE}
_ACCENTS = ["overline", "bar", "vec", "hat", "overrightarrow", "tilde", "underline", "angle", "triangle", "widehat"]
_MATRICES = ("matrix", "pmatrix", "bmatrix", "smallmatrix", "Bmatrix")
_DERIVATIVE = re.compile(r"\{ d (?:\^ . )?(\S) \} \{ d (\S)(?: \^ .)? \}")


def _argument(parser: Parser) -> Expr:
    """Read one argument of a command: a group, or a single digit or token, as LaTeX has it."""
    token = parser.peek()
    if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
        parser.tokens[parser.position] = token._replace(text=token.text[1:])
        return Integer(int(token.text[0]))
    return expr_of(parser.atom())


def _fraction(parser: Parser, _name: str) -> Reading:
    """Read a fraction; a derivative becomes a symbol."""
    start = parser.position
    if _DERIVATIVE.match(" ".join(token.text for token in parser.tokens[start : start + 12])):
        for _ in range(2):
            while parser.take("}") is None:
                parser.position += 1
        name = " ".join(token.text for token in parser.tokens[start : parser.position])
        return MathValue(Symbol(f"derivative {name}"))
    numerator, denominator = _argument(parser), _argument(parser)
    if denominator == 0:
        raise Unread("division by zero")
    return MathValue(numerator / denominator)


def _root(parser: Parser, name: str) -> Reading:
    """Read a root, with its degree in brackets if there is one."""
    degree = Integer(3 if name == "cbrt" else 2)
    if parser.take("["):
        degree = expr_of(parser.sum())
        parser.expect("]")
    return MathValue(sympy.root(check_finite(expr_of(parser.atom())), degree))


def _rounded(parser: Parser, name: str) -> Reading:
    inner = expr_of(parser.sum())
    parser.expect("r" + name[1:])
    return MathValue(sympy.floor(inner) if name == "lfloor" else sympy.ceiling(inner))


def _function(parser: Parser, name: str) -> Reading:
    """Read a function: its index or power, and its argument."""
    base, power = None, None
    while mark := parser.take("_", "^"):
        if mark == "_":
            base = expr_of(parser.atom())
        else:
            power = parser.exponent()
    arguments = _arguments(parser)
    if name == "exp" and base is None and len(arguments) == 1:
        value = raise_to(sympy.E, arguments[0])
    else:
        value = apply(name, arguments, base, inverse=power == -1)
    return MathValue(value if power in (None, -1) else raise_to(value, power))


def _arguments(parser: Parser) -> list[Expr]:
    if opening := parser.take("(", "{"):
        return list(map(expr_of, parser.inside_up_to(")" if opening == "(" else "}")))
    return [parser.bare_argument()]


def _name_text(parser: Parser) -> str:
    """Read the letters of a name, in a group or side by side."""
    if parser.take("{"):
        return parser.take_to_brace()
    name = parser.take_any()
    while parser.peek().kind == "symbol" and not parser.peek().spaced:
        name += parser.take_any()
    return name


def _number_set(parser: Parser, _name: str) -> Reading:
    letter = parser.take_to_brace() if parser.take("{") else parser.take_any()
    if letter not in _NUMBER_SETS:
        raise Unread(f"the set {letter}")
    return Region(_NUMBER_SETS[letter])


def _matrix(parser: Parser, _name: str) -> Reading:
    name = _name_text(parser)
    if name not in _MATRICES:
        raise Unread(f"the environment {name}")
    rows = [[expr_of(parser.sum())]]
    while not parser.take("end"):
        if parser.take("&"):
            rows[-1].append(expr_of(parser.sum()))
        elif not parser.take("\\\\"):
            raise Unread("a matrix")
        elif parser.text() != "end":
            rows.append([expr_of(parser.sum())])
    if _name_text(parser) != name:
        raise Unread("an environment's end")
    if len(set(map(len, rows))) != 1:
        raise Unread("rows of several lengths")
    return Grid(sympy.ImmutableDenseMatrix(rows))


def _absolute(parser: Parser, _mark: str) -> Reading:
    parser.bars += 1
    inner = expr_of(parser.sum())
    parser.expect("|")
    parser.bars -= 1
    return MathValue(sympy.Abs(check_finite(inner)))


def _group(parser: Parser, _mark: str) -> Reading:
    """Read a group in braces; several items in it are a set."""
    if parser.take("}"):
        raise Unread("an empty group")
    found = parser.inside_up_to("}", "choose")
    if parser.text(-1) == "choose":
        chosen = expr_of(parser.related())
        parser.expect("}")
        return MathValue(sympy.binomial(check_size(expr_of(found[0]), 10**4), check_size(chosen, 10**4)))
    return found[0] if len(found) == 1 else join_items("set", found)


def _set(parser: Parser, _mark: str) -> Reading:
    """Read the items of a set, or its condition: `x | x > 3`."""
    if parser.take("\\}"):
        return Items("set", ())
    opened = parser.text() != "|"
    parser.bars += opened
    found = [parser.related()]
    parser.bars -= opened
    if condition := parser.take("|", ":"):
        found = [parser.listed()]
    while not condition and parser.take(",", ";"):
        found.append(parser.item())
    parser.expect("\\}")
    if condition and not isinstance(found[0], Chain):
        raise Unread("a set's condition")
    return join_items("set", found)


def _bracketed(parser: Parser, opening: str) -> Reading:
    """Read brackets: around one value, a point, a sequence or an interval."""
    found = parser.inside()
    closing = parser.take(")", "]", "[")
    if closing is None:
        raise Unread("an open bracket")
    if len(found) == 2 and all(isinstance(each, MathValue) for each in found):
        return make_pair(opening, closing, *found)
    if opening + closing not in ("()", "[]"):
        raise Unread("brackets that do not match")
    return found[0] if len(found) == 1 else join_items("round" if opening == "(" else "square", found)


_OPENINGS: Mapping[str, Callable[[Parser, str], Reading]] = {
    **dict.fromkeys("([]", _bracketed),
    "{": _group,
    "\\{": _set,
    "|": _absolute,
    **dict.fromkeys((*GREEK, "ell"), lambda parser, name: parser.named(name + parser.index())),
    **dict.fromkeys(_CONSTANTS, lambda _parser, name: MathValue(_CONSTANTS[name])),
    **dict.fromkeys(_ACCENTS, lambda parser, name: MathValue(Symbol(f"{name} {_name_text(parser)}"))),
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(("sqrt", "cbrt"), _root),
    **dict.fromkeys(("lfloor", "lceil"), _rounded),
    "frac": _fraction,
    "binom": lambda parser, _name: MathValue(sympy.binomial(*(check_size(_argument(parser), 10**6) for _ in range(2)))),
    "langle": lambda parser, _name: Items("round", tuple(parser.inside_up_to("rangle"))),
    "mathbb": _number_set,
    "begin": _matrix,
    "emptyset": lambda _parser, _name: Items("set", ()),
}
