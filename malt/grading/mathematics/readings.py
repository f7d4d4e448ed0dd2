"""Readings of mathematical texts, and arithmetic on them, which raises `Unread` if there is no result."""

from collections.abc import Callable
from typing import NamedTuple

import sympy
from sympy import Expr, Integer, Symbol

from malt.grading.mathematics.tokens import Unread

_LARGEST_POWER = 100_000
"""Most bits of a power that is computed."""
EITHER_SIGN = Symbol("±")
"""Placeholder for either sign in an expression, until the reading is split in two."""


def unit(name: str) -> Symbol:
    return Symbol(f"unit {name}", positive=True)


DEGREE, PERCENT = unit("degree"), unit("percent")


class MathValue(NamedTuple):
    """An expression and its unit; `decimal` is its spelling if it is one decimal number."""

    expr: Expr
    unit: Expr = Integer(1)
    decimal: str | None = None


class Items(NamedTuple):
    """Several readings: `list`, `either` and `set` have no order, `round`, `square`, `ratio` and `dots` have one."""

    kind: str
    items: "tuple[Reading, ...]"


class Region(NamedTuple):
    """A set of numbers: an interval, or a set made of intervals and points."""

    points: sympy.Set


class Chain(NamedTuple):
    """Sides with relations between them: `x = 5`, `1 < x < 2`."""

    sides: "tuple[Reading, ...]"
    relations: tuple[str, ...]


class Based(NamedTuple):
    """A numeral with its base, `204_8`."""

    digits: str
    base: int


class Words(NamedTuple):
    """An answer in words, in lower case."""

    text: str


class Grid(NamedTuple):
    """A matrix or a column vector."""

    cells: sympy.ImmutableDenseMatrix


Reading = MathValue | Items | Region | Chain | Based | Words | Grid
UNORDERED = ("list", "either", "set")


def symbols_in(reading: Reading) -> set[str]:
    match reading:
        case MathValue(found) | Grid(found):
            return {symbol.name for symbol in found.free_symbols}
        case Items(_, items) | Chain(items, _):
            return set().union(*map(symbols_in, items))
    return set()


def is_symbol(reading: Reading) -> bool:
    return isinstance(reading, MathValue) and bool(reading.expr.is_Symbol)


def expr_of(reading: Reading) -> Expr:
    """Return the expression of a value, its unit included."""
    if not isinstance(reading, MathValue):
        raise Unread("what is no value stands in an expression")
    return reading.expr * reading.unit


def split_signs(reading: Reading) -> Reading:
    """Turn `1 ± x` into the two values that it stands for."""
    if isinstance(reading, Chain) and reading.relations == ("=",):
        return Chain((reading.sides[0], split_signs(reading.sides[1])), reading.relations)
    if isinstance(reading, Items):
        items = tuple(map(split_signs, reading.items))
        if reading.kind in UNORDERED:
            items = tuple(inner for item in items for inner in _flat(item))
        return Items(reading.kind, items)
    if isinstance(reading, MathValue) and reading.expr.has(EITHER_SIGN):
        both = (reading._replace(expr=reading.expr.subs(EITHER_SIGN, sign)) for sign in (1, -1))
        return Items("list", tuple(both))
    return reading


def _flat(reading: Reading) -> tuple[Reading, ...]:
    return reading.items if isinstance(reading, Items) and reading.kind in ("list", "either") else (reading,)


# Units.


def is_unit(expr: Expr) -> bool:
    """Whether an expression is made of units alone."""
    return bool(expr.free_symbols) and all(map(_names_unit, expr.free_symbols))


def has_unit(expr: Expr) -> bool:
    return any(map(_names_unit, expr.free_symbols))


def _names_unit(symbol: Symbol) -> bool:
    return bool(symbol.name.startswith("unit "))


def split_unit(expr: Expr, decimal: str | None) -> MathValue:
    """Separate an expression from its unit, which may stand once for a sum; raise `Unread` for a sum of several."""
    units = [symbol for symbol in expr.free_symbols if _names_unit(symbol)]
    if not units:
        return MathValue(expr, Integer(1), decimal)
    if expr.is_Add and len(units) == 1 and sum(map(has_unit, expr.args)) == 1:
        return MathValue(expr.subs(units[0], 1), units[0], decimal)
    coefficient, unit = sympy.factor_terms(expr).as_independent(*units, as_Add=False)
    if has_unit(coefficient) or not (unit.is_Mul or unit.is_Pow or unit.is_Symbol):
        raise Unread("several units")
    return MathValue(coefficient, unit, decimal)


# Arithmetic, within bounds.


def apply_sign(sign: str, value: Expr) -> Expr:
    """Return a value with a sign before it, which may be `±`."""
    return value * {"+": Integer(1), "-": Integer(-1), "pm": EITHER_SIGN, "mp": -EITHER_SIGN}[sign]


def check_size(value: Expr, most: int) -> Expr:
    """Return the value; raise `Unread` if its magnitude exceeds `most`."""
    if value.is_number and not abs(value) <= most:
        raise Unread("a number too large")
    return value


def check_finite(value: Expr) -> Expr:
    """Return the value; raise `Unread` if it contains infinity."""
    if value.has(sympy.oo, -sympy.oo, sympy.zoo):
        raise Unread("infinity in a calculation")
    return value


def raise_to(base: Expr, exponent: Expr) -> Expr:
    """Return a power; raise `Unread` if it would be too long, or zero to the power of zero or less."""
    check_finite(base * exponent)
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(int(base.p)).bit_length(), int(base.q).bit_length()) * abs(exponent)
        if bits > _LARGEST_POWER:
            raise Unread("a power too large")
        if base == 0 and exponent <= 0:
            raise Unread("zero to the power of zero")
    return base**exponent


_OF_MANY: dict[str, Callable[[list[Expr]], Expr]] = {
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "max": lambda arguments: sympy.Max(*arguments),
    "min": lambda arguments: sympy.Min(*arguments),
}
_OF_ANGLES = ("sin", "cos", "tan", "cot", "sec", "csc")
_SYMPY_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "abs": "Abs", "ceil": "ceiling"}


def apply(name: str, arguments: list[Expr], base: Expr | None, *, inverse: bool) -> Expr:
    """Apply a function of one or more arguments; `base` is its index, such as a logarithm's."""
    if name in _OF_MANY:
        return _OF_MANY[name](arguments)
    if len(arguments) != 1:
        raise Unread(f"{name} of {len(arguments)} arguments")
    argument = check_finite(arguments[0])
    if name in ("ln", "log", "lg"):
        return _logarithm(argument, Integer(10) if base is None and name == "lg" else base)
    if base is not None:
        raise Unread(f"{name} with an index")
    if name in _OF_ANGLES and not inverse:
        argument = argument.subs(DEGREE, sympy.pi / 180)
    if has_unit(argument):
        raise Unread(f"{name} of a unit")
    found = getattr(sympy, "a" + name if inverse else _SYMPY_NAMES.get(name, name))(argument)
    if found.has(sympy.zoo, sympy.nan):
        raise Unread(f"{name} without a value")
    return found


def _logarithm(argument: Expr, base: Expr | None) -> Expr:
    if base in (0, 1) or argument == 0:
        raise Unread("a logarithm without a value")
    return sympy.log(argument) if base is None else sympy.log(argument, base)


# Sets of numbers.


def make_pair(opening: str, closing: str, left: Reading, right: Reading) -> Reading:
    """Return two values in brackets: an interval unless both brackets are round and both values finite."""
    low, high = expr_of(left), expr_of(right)
    if opening + closing == "()" and sympy.oo not in (abs(low), abs(high)):
        return Items("round", (left, right))
    if not (low.is_extended_real and high.is_extended_real):
        return Items(f"{opening}{closing}", (left, right))
    if low > high:
        raise Unread("an interval that ends before it begins")
    return Region(sympy.Interval(low, high, opening in "(]", closing in ")["))


def as_region(reading: Reading) -> sympy.Set | None:
    """Return a reading as a set of points, a round pair as the interval; None if it is no set."""
    if isinstance(reading, Region):
        return reading.points
    if not isinstance(reading, Items) or not all(isinstance(item, MathValue) for item in reading.items):
        return None
    values = [expr_of(item) for item in reading.items]
    is_pair = reading.kind == "round" and len(values) == 2 and all(value.is_real for value in values)
    if is_pair and values[0] < values[1]:
        return sympy.Interval.open(*values)
    return sympy.FiniteSet(*values) if reading.kind == "set" else None


_JOINS: dict[str, Callable[[sympy.Set, sympy.Set], sympy.Set]] = {
    "cup": sympy.Set.union,
    "cap": sympy.Set.intersect,
    "setminus": sympy.Set.__sub__,
}


def join_sets(operation: str, left: Reading, right: Reading) -> Reading:
    """Return the union, the intersection or the difference of two sets."""
    first, second = as_region(left), as_region(right)
    if first is None or second is None:
        raise Unread("what is no set stands beside \\cup")
    joined = _JOINS[operation](first, second)
    if isinstance(joined, sympy.FiniteSet):
        return Items("set", tuple(MathValue(each) for each in joined))
    return Region(joined)
