r"""What is read after each `\command` and each opening bracket, as a table."""

import re
from collections.abc import Callable, Mapping

import sympy
from sympy import Expr, Integer, Symbol

from malt.grading.mathematics.parser import Parser, several
from malt.grading.mathematics.readings import (
    DEGREE,
    Chain,
    Grid,
    Items,
    MathValue,
    Reading,
    Region,
    apply,
    bounded,
    finite,
    pair,
    raise_to,
    whole,
)
from malt.grading.mathematics.tokens import FUNCTIONS, GREEK, Unread

_ARGUMENT_ENDS = frozenset({"*", "/", "(", "|", *FUNCTIONS})
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
    return whole(parser.atom())


def _fraction(parser: Parser, _name: str) -> Reading:
    """Read a fraction; a derivative is a name."""
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
    """Read a root, of the degree that stands in brackets."""
    degree = Integer(3 if name == "cbrt" else 2)
    if parser.take("["):
        degree = whole(parser.sum())
        parser.expect("]")
    return MathValue(sympy.root(finite(whole(parser.atom())), degree))


def _binomial(parser: Parser, _name: str) -> Reading:
    return MathValue(sympy.binomial(*(bounded(_argument(parser), 10**6) for _ in range(2))))


def _rounded(parser: Parser, name: str) -> Reading:
    inner = whole(parser.sum())
    parser.expect("r" + name[1:])
    return MathValue(sympy.floor(inner) if name == "lfloor" else sympy.ceiling(inner))


def _function(parser: Parser, name: str) -> Reading:
    """Read a function: its index or power, and its argument."""
    base, power = None, None
    while mark := parser.take("_", "^"):
        if mark == "_":
            base = whole(parser.atom())
        else:
            power = parser.exponent()
    if opening := parser.take("(", "{"):
        arguments = list(map(whole, parser.inside_up_to(")" if opening == "(" else "}")))
    else:
        arguments = [parser.bare_argument(_ARGUMENT_ENDS)]
    if name == "exp" and base is None and len(arguments) == 1:
        value = raise_to(sympy.E, arguments[0])
    else:
        value = apply(name, arguments, base, inverse=power == -1)
    return MathValue(value if power in (None, -1) else raise_to(value, power))


def _accented(parser: Parser, name: str) -> Reading:
    return MathValue(Symbol(f"{name} {_name_text(parser)}"))


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
    rows = [[whole(parser.sum())]]
    while not parser.take("end"):
        if parser.take("&"):
            rows[-1].append(whole(parser.sum()))
        elif not parser.take("\\\\"):
            raise Unread("a matrix")
        elif parser.text() != "end":
            rows.append([whole(parser.sum())])
    if _name_text(parser) != name:
        raise Unread("an environment's end")
    if len(set(map(len, rows))) != 1:
        raise Unread("rows of several lengths")
    return Grid(sympy.ImmutableDenseMatrix(rows))


def _absolute(parser: Parser, _mark: str) -> Reading:
    parser.bars += 1
    inner = whole(parser.sum())
    parser.expect("|")
    parser.bars -= 1
    return MathValue(sympy.Abs(finite(inner)))


def _group(parser: Parser, _mark: str) -> Reading:
    """Read a group; several items in one are a set."""
    if parser.take("}"):
        raise Unread("an empty group")
    found = parser.inside_up_to("}", "choose")
    if parser.text(-1) == "choose":
        chosen = whole(parser.related())
        parser.expect("}")
        return MathValue(sympy.binomial(bounded(whole(found[0]), 10**4), bounded(chosen, 10**4)))
    return found[0] if len(found) == 1 else several("set", found)


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
    return several("set", found)


def _bracketed(parser: Parser, opening: str) -> Reading:
    """Read brackets: around one value, a point, a sequence or an interval."""
    found = parser.inside()
    closing = parser.take(")", "]", "[")
    if closing is None:
        raise Unread("an open bracket")
    if len(found) == 2 and all(isinstance(each, MathValue) for each in found):
        return pair(opening, closing, *found)
    if opening + closing not in ("()", "[]"):
        raise Unread("brackets that do not match")
    return found[0] if len(found) == 1 else several("round" if opening == "(" else "square", found)


OPENINGS: Mapping[str, Callable[[Parser, str], Reading]] = {
    **dict.fromkeys("([]", _bracketed),
    "{": _group,
    "\\{": _set,
    "|": _absolute,
    **dict.fromkeys((*GREEK, "ell"), lambda parser, name: parser.named(name + parser.index())),
    **dict.fromkeys(_CONSTANTS, lambda _parser, name: MathValue(_CONSTANTS[name])),
    **dict.fromkeys(_ACCENTS, _accented),
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(("sqrt", "cbrt"), _root),
    **dict.fromkeys(("lfloor", "lceil"), _rounded),
    "frac": _fraction,
    "binom": _binomial,
    "langle": lambda parser, _name: Items("round", tuple(parser.inside_up_to("rangle"))),
    "mathbb": _number_set,
    "begin": _matrix,
    "emptyset": lambda _parser, _name: Items("set", ()),
}
