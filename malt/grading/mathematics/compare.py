"""Exact comparison of two readings as mathematics, with regard to order, kind and unit."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import sympy
from sympy import Expr, Integer, Rational, Symbol
from sympy.core.function import AppliedUndef

from malt.grading.mathematics.readings import (
    PERCENT,
    UNORDERED,
    Based,
    Chain,
    Grid,
    Items,
    MathValue,
    Reading,
    Region,
    Words,
    as_region,
    is_symbol,
    unit,
)
from malt.grading.mathematics.tokens import Unread
from malt.grading.numbers import decimal_places

_LEAST_FIGURES = 6
"""Least number of figures of a decimal number that counts as equal to the exact number that it rounds."""
_PRECISION = 40
_MOST_MEMBERS = 200
_Item = TypeVar("_Item")


def same(reference: Reading, answer: Reading) -> bool:
    """Whether an answer is the same as the reference. Raises `Unread` if that cannot be decided."""
    reference, answer = _unwrapped(reference), _unwrapped(answer)
    match reference, answer:
        case (Chain(), _) | (_, Chain()):
            return _same_chains(reference, answer)
        case MathValue(), MathValue():
            near = (_are_near(reference, left, answer, right) for left, right in _readings(reference, answer))
            return _same_units(reference.unit, answer.unit) and any(near)
        case Based(), MathValue():
            return answer.decimal == reference.digits and answer.unit == 1
        case Items("either"), Region(points):
            return _same_regions(_union_of(reference), points)
        case (Region(), _) | (_, Region()):
            return _same_regions(as_region(reference), as_region(answer))
        case Items(), Items():
            return _same_items(reference, answer)
        case Grid(left), Grid(right):
            return left.shape == right.shape and all(map(_same_expression, left.flat(), right.flat()))
    return type(reference) is type(answer) and reference == answer


def _unwrapped(reading: Reading) -> Reading:
    match reading:
        case Items("set", (alone,)):
            return _unwrapped(alone)
    return reading


# Values.


def _readings(reference: MathValue, answer: MathValue) -> Iterator[tuple[Expr, Expr]]:
    """Yield the pairs to compare: a percent sign may be left out on one side, or its division by 100 carried out."""
    yield reference.expr, answer.expr
    parts = [100 if side.unit == PERCENT else 1 for side in (reference, answer)]
    if parts[0] != parts[1]:
        yield reference.expr / parts[0], answer.expr / parts[1]


def _same_units(left: Expr, right: Expr) -> bool:
    left, right = left.subs(unit("unit"), 1), right.subs(unit("unit"), 1)
    return left == right or Integer(1) in (left, right)


def _are_near(reference: MathValue, left: Expr, answer: MathValue, right: Expr) -> bool:
    """Whether two values are equal, or one is written as the other one's rounding to six figures or more."""
    if _same_expression(left, right):
        return True
    if left.free_symbols or right.free_symbols:
        return False
    if answer.decimal is None or (reference.decimal is not None and len(reference.decimal) < len(answer.decimal)):
        return _is_rounding(reference.decimal, left, right)
    return _is_rounding(answer.decimal, right, left)


def _is_rounding(written: str | None, value: Expr, exact: Expr) -> bool:
    """Whether a decimal number was written to six figures or more, and all of them are those of the exact value."""
    if written is None or "." not in written or not exact.is_real:
        return False
    digits, _, exponent = written.lower().lstrip("-").partition("e")
    if len(digits.replace(".", "").lstrip("0")) < _LEAST_FIGURES:
        return False
    last = Rational(10) ** (int(exponent or 0) - len(digits.partition(".")[2]))
    if exact.is_Rational and decimal_places(exact.q) == decimal_places(value.q):
        return False
    return bool(abs(exact - value).evalf(_PRECISION) <= last / 2)


_COORDINATES = [Rational(top, bottom) for bottom, top in pairwise((5, 7, 11, 13, 17, 19, 23, 29))]


def _same_expression(left: Expr, right: Expr) -> bool:
    """Whether two expressions have the same symbols, and the same value at every point that is tried."""
    if left == right:
        return True
    if left.free_symbols != right.free_symbols:
        return False
    symbols = sorted(left.free_symbols, key=str)
    return _same_everywhere(left, right, symbols) if symbols else _same_number(left, right)


def _same_everywhere(left: Expr, right: Expr, symbols: Sequence[Symbol]) -> bool:
    tried = 0
    for first, second in _values(left, right, symbols):
        if not _same_number(first, second):
            return False
        tried += 1
    if tried < 2:
        raise Unread("no point at which both sides have a value")
    return True


def _values(left: Expr, right: Expr, symbols: Sequence[Symbol]) -> Iterator[tuple[Expr, Expr]]:
    for point in _points(symbols):
        first, second = left.subs(point), right.subs(point)
        if _has_value(first) and _has_value(second):
            yield first, second


def _points(symbols: Sequence[Symbol]) -> list[dict[Symbol, Rational]]:
    """Return test points: all coordinates positive, then one symbol after the other negative."""
    period = len(_COORDINATES)
    values = {symbol: _COORDINATES[index % period] + index // period for index, symbol in enumerate(symbols)}
    larger = {symbol: value * 3 + 1 for symbol, value in values.items()}
    return [values, larger, *({**values, symbol: -values[symbol] * 2} for symbol in symbols[:4])]


def _has_value(expr: Expr) -> bool:
    return not expr.has(sympy.nan, sympy.zoo)


def _same_number(left: Expr, right: Expr) -> bool:
    """Whether two numbers agree in 30 figures, then in 290; rational numbers must be equal."""
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return False
    if any(side.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for side in (left, right)):
        return False
    if left.atoms(AppliedUndef) or right.atoms(AppliedUndef):
        return bool(sympy.simplify(left - right) == 0)
    return all(_agree(left, right, figures) for figures in (30, 290))


def _agree(left: Expr, right: Expr, figures: int) -> bool:
    first, second = left.evalf(figures + 10), right.evalf(figures + 10)
    if any(side.atoms(Symbol) or not _has_value(side) for side in (first, second)):
        raise Unread("a value that cannot be computed")
    return bool(abs(first - second) <= Rational(1, 10**figures) * max(abs(first), abs(second)))


# Lists, sets and regions.


def _same_items(reference: Items, answer: Items) -> bool:
    (name, reference), (other, answer) = _without_name(reference), _without_name(answer)
    if name is not None and other is not None and not same(name, other):
        return False
    if reference.kind in UNORDERED and answer.kind in UNORDERED:
        return len(reference.items) <= _MOST_MEMBERS and _same_members(reference.items, answer.items, same)
    if reference.kind != answer.kind or len(reference.items) != len(answer.items):
        return False
    return all(map(same, reference.items, answer.items))


def _without_name(items: Items) -> tuple[Reading | None, Items]:
    """Separate the name from a list of values: the `n` of `n = 2, 3, 4`, or of `n = 2, n = 3`."""
    named = [_split_name(item) if isinstance(item, Chain) else None for item in items.items]
    names = {pair[0] for pair in named if pair is not None}
    if items.kind not in ("list", "either") or not named or named[0] is None or len(names) > 1:
        return None, items
    values = (item if pair is None else pair[1] for item, pair in zip(items.items, named, strict=True))
    return named[0][0], Items(items.kind, tuple(values))


def _same_members(left: Sequence[_Item], right: Sequence[_Item], are_same: Callable[[_Item, _Item], bool]) -> bool:
    """Whether two sequences have the same items, in any order."""
    others = list(right)
    if len(left) != len(others):
        return False
    for item in left:
        found = next((index for index, other in enumerate(others) if are_same(item, other)), None)
        if found is None:
            return False
        del others[found]
    return True


def _same_regions(reference: sympy.Set | None, answer: sympy.Set | None) -> bool:
    if reference is None or answer is None:
        return False
    if reference == answer:
        return True
    left, right = _pieces(reference), _pieces(answer)
    if left is None or right is None or len(left) != len(right):
        return False
    pairs = zip(left, right, strict=True)
    return all(one[2:] == other[2:] and all(map(_same_expression, one[:2], other[:2])) for one, other in pairs)


_Piece = tuple[Expr, Expr, bool, bool]


def _pieces(region: sympy.Set) -> list[_Piece] | None:
    """Return the intervals and points of a set in order, or None if it has other parts."""
    found: list[_Piece] = []
    for part in region.args if isinstance(region, sympy.Union) else (region,):
        if isinstance(part, sympy.Interval):
            found.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            found.extend((point, point, False, False) for point in part)
        else:
            return None
    return sorted(found, key=lambda piece: float(piece[0]))


# Relations.


def _same_chains(reference: Reading, answer: Reading) -> bool:
    match reference, answer:
        case Chain(), Chain():
            return _same_two_chains(reference, answer)
        case Chain(), _:
            if named := _split_name(reference, proven=False):
                return same(named[1], answer)
            return _same_regions(_region_of(reference), as_region(answer))
        case _, Chain():
            named = _split_name(answer)
            return named is not None and same(reference, named[1])
    return False


def _same_two_chains(reference: Chain, answer: Chain) -> bool:
    left, right = _split_name(reference), _split_name(answer)
    if left is not None and right is not None and left[0] == right[0]:
        return same(left[1], right[1])
    if "equiv" in (*reference.relations, *answer.relations):
        return reference.relations == answer.relations and all(map(same, reference.sides, answer.sides))
    for one, other in ((reference, answer), (answer, reference)):
        if one.relations == ("in",):
            return one.sides[0] in other.sides and _same_regions(as_region(one.sides[1]), _region_of(other))
    return _same_members(list(_relations(reference)), list(_relations(answer)), _same_relation)


def _split_name(chain: Chain, *, proven: bool = True) -> tuple[Reading, Reading] | None:
    r"""Return the name and the value of `x = 5`, `x \in [1, 2]` or sides that are all the same; None for an equation.

    `proven`: accept equal expressions followed by their value, as in `a + z = z + a = 101`.
    """
    if chain.relations in (("in",), ("equiv",)):
        return (chain.sides[0], chain.sides[1]) if _is_name(chain.sides[0]) else None
    if set(chain.relations) != {"="}:
        return None
    *before, last = chain.sides
    if _is_name(before[0]) and all(same(side, last) for side in before[1:]):
        return before[0], last
    if all(map(_is_number, chain.sides)) and all(same(last, side) for side in before):
        return before[0], last
    if not proven or len(before) < 2 or not _is_number(last):
        return None
    is_value = all(isinstance(side, MathValue) for side in before)
    return (before[0], last) if is_value and all(same(*sides) for sides in pairwise(before)) else None


def _is_name(reading: Reading) -> bool:
    """Whether a side is a symbol, or a function of symbols or numbers such as `f(x)`; a point of symbols is one too."""
    match reading:
        case Items(kind, items):
            return kind == "round" and all(map(_is_name, items))
        case Words():
            return True
        case MathValue(expr, Integer(p=1)):
            named = expr.args[0] if isinstance(expr, sympy.Abs) else expr
            if named.is_Mul and all(factor.is_Symbol and factor.name.isupper() for factor in named.args):
                return True  # the segment AB
            return bool(expr.is_Symbol) or isinstance(expr, AppliedUndef)
    return False


def _is_number(reading: Reading) -> bool:
    return isinstance(reading, MathValue) and not reading.expr.free_symbols


_TURNED = {"<": ">", "leq": "geq", "neq": "neq", "=": "="}


def _relations(chain: Chain) -> Iterator[tuple[str, Expr]]:
    """Yield each relation as an expression that is `=`, `neq`, `>` or `geq` zero."""
    for (left, right), relation in zip(pairwise(chain.sides), chain.relations, strict=True):
        if not (isinstance(left, MathValue) and isinstance(right, MathValue)):
            raise Unread("a relation of what is no value")
        if left.unit != right.unit and 1 not in (left.unit, right.unit):
            raise Unread("a relation of what is no value")
        difference = left.expr - right.expr
        yield (_TURNED[relation], -difference) if relation in ("<", "leq") else (relation, difference)


def _same_relation(left: tuple[str, Expr], right: tuple[str, Expr]) -> bool:
    """Whether two relations are the same up to a constant factor."""
    (relation, first), (other, second) = left, right
    if relation != other or first.free_symbols != second.free_symbols or not first.free_symbols:
        return False
    point = _points(sorted(first.free_symbols, key=str))[1]
    at_first, at_second = first.subs(point), second.subs(point)
    if at_second == 0 or not _has_value(at_first) or not _has_value(at_second):
        raise Unread("a relation that cannot be tried")
    ratio = at_first / at_second
    if relation in (">", "geq") and not ratio.evalf() > 0:
        return False
    return _same_expression(sympy.expand(first), sympy.expand(second * ratio))


def _region_of(chain: Chain) -> sympy.Set | None:
    """Return the interval given by inequalities between one symbol and numbers, or None for other relations."""
    region: sympy.Set = sympy.S.Reals
    for (left, right), relation in zip(pairwise(chain.sides), chain.relations, strict=True):
        if not isinstance(left, MathValue) or not isinstance(right, MathValue):
            return None
        turned = not left.expr.is_Symbol
        symbol, number = (right.expr, left.expr) if turned else (left.expr, right.expr)
        if not symbol.is_Symbol or number.free_symbols or relation in ("=", "neq"):
            return None
        region = region.intersect(_half_line(relation, number, turned=turned))
    return region


def _half_line(relation: str, number: Expr, *, turned: bool) -> sympy.Set:
    is_open, is_below = relation in ("<", ">"), (relation in ("<", "leq")) != turned
    ends = (-sympy.oo, number, True, is_open) if is_below else (number, sympy.oo, is_open, True)
    return sympy.Interval(*ends)


def _union_of(items: Items) -> sympy.Set | None:
    """Return the numbers that fulfil one of several relations of the same symbol; None for other items."""
    regions = [_region_of(item) if isinstance(item, Chain) else None for item in items.items]
    symbols = {side for item in items.items if isinstance(item, Chain) for side in item.sides if is_symbol(side)}
    return None if None in regions or len(symbols) != 1 else sympy.Union(*regions)


def sympy_form(reading: Reading) -> "sympy.Basic | None":
    match reading:
        case MathValue(form) | Region(form) | Grid(form):
            return form
    return None
