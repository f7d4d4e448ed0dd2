"""Comparing two readings: the same mathematics, exactly. Order, kind and unit count as the reference has them."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import sympy
from sympy import Expr, Integer, Rational, Symbol
from sympy.core.function import AppliedUndef

from malt.grading.math_reader import (
    PERCENT,
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
)
from malt.grading.math_tokens import Unread
from malt.grading.numbers import decimal_places

_LEAST_FIGURES = 6
"""Figures from which on a decimal number stands for the exact one that it is the rounding of."""
_PRECISION = 40


def same(reference: Reading, answer: Reading) -> bool:
    """Whether an answer is the same as the reference. Raises `Unread` where that cannot be said."""
    reference, answer = _unwrapped(reference), _unwrapped(answer)
    if isinstance(reference, Chain) or isinstance(answer, Chain):
        return _same_chains(reference, answer)
    if isinstance(reference, MathValue) and isinstance(answer, MathValue):
        return _same_values(reference, answer)
    if isinstance(reference, Based) and isinstance(answer, MathValue):
        return answer.decimal == reference.digits and answer.unit == 1
    if isinstance(answer, Region) and isinstance(reference, Items) and reference.kind == "either":
        return _same_regions(_union_of(reference), answer.points)
    if isinstance(reference, Region) or isinstance(answer, Region):
        return _same_regions(as_region(reference), as_region(answer))
    if isinstance(reference, Items) and isinstance(answer, Items):
        return _same_items(reference, answer)
    if isinstance(reference, Grid) and isinstance(answer, Grid):
        return reference.cells.shape == answer.cells.shape and all(
            map(same_expression, reference.cells.flat(), answer.cells.flat())
        )
    return reference == answer if type(reference) is type(answer) else False


def _unwrapped(reading: Reading) -> Reading:
    """Take a single item out of its set."""
    alone = isinstance(reading, Items) and len(reading.items) == 1 and reading.kind == "set"
    return _unwrapped(reading.items[0]) if isinstance(reading, Items) and alone else reading


def _without_name(items: Items) -> tuple[Reading | None, Items]:
    """Part a name from a list of values that it is given to, `n = 2, 3, 4` or `n = 2, n = 3`."""
    named = [_named(item) if isinstance(item, Chain) else None for item in items.items]
    first = named[0] if named else None
    if (
        items.kind not in ("list", "either")
        or first is None
        or any(other is not None and other[0] != first[0] for other in named)
    ):
        return None, items
    values = (item if name is None else name[1] for item, name in zip(items.items, named, strict=True))
    return first[0], Items(items.kind, tuple(values))


# Values.


def _same_values(reference: MathValue, answer: MathValue) -> bool:
    near = (_near(reference, left, answer, right) for left, right in _readings(reference, answer))
    return _same_units(reference, answer) and any(near)


def _readings(reference: MathValue, answer: MathValue) -> Iterator[tuple[Expr, Expr]]:
    """Yield the pairs to compare: a percentage on one side alone may have been left out, or carried out."""
    yield reference.expr, answer.expr
    if (reference.unit == PERCENT) != (answer.unit == PERCENT):
        yield (
            reference.expr / (100 if reference.unit == PERCENT else 1),
            answer.expr / (100 if answer.unit == PERCENT else 1),
        )


def _same_units(reference: MathValue, answer: MathValue) -> bool:
    left, right = reference.unit, answer.unit
    generic = Symbol("unit unit", positive=True)
    left, right = left.subs(generic, 1), right.subs(generic, 1)
    return left == right or Integer(1) in (left, right)


def _near(reference: MathValue, left: Expr, answer: MathValue, right: Expr) -> bool:
    """Whether two values are equal, or one is written as the other one's rounding to six figures or more."""
    if same_expression(left, right):
        return True
    if left.free_symbols or right.free_symbols:
        return False
    return (
        _is_rounding(reference.decimal, left, right)
        if _shorter(reference, answer)
        else _is_rounding(answer.decimal, right, left)
    )


def _shorter(reference: MathValue, answer: MathValue) -> bool:
    if reference.decimal is None or answer.decimal is None:
        return answer.decimal is None
    return len(reference.decimal) < len(answer.decimal)


def _is_rounding(written: str | None, value: Expr, exact: Expr) -> bool:
    """Whether a decimal number was written to six figures or more, and all of them are those of the exact value."""
    if written is None or "." not in written or not exact.is_real:
        return False
    digits, _, exponent = written.lower().lstrip("-").partition("e")
    if len(digits.replace(".", "").lstrip("0")) < _LEAST_FIGURES:
        return False
    last = Rational(10) ** (int(exponent or 0) - len(digits.partition(".")[2]))
    if exact.is_Rational and decimal_places(_fraction(exact)) == decimal_places(_fraction(value)):
        return False
    return bool(abs(exact - value).evalf(_PRECISION) <= last / 2)


def _fraction(value: Rational) -> Fraction:
    return Fraction(int(value.p), int(value.q))


_POINTS = [
    Rational(7, 5),
    Rational(11, 7),
    Rational(13, 11),
    Rational(17, 13),
    Rational(19, 17),
    Rational(23, 19),
    Rational(29, 23),
]


def same_expression(left: Expr, right: Expr) -> bool:
    """Whether two expressions have the same symbols, and the same value at every point that is tried."""
    if left == right:
        return True
    if left.free_symbols != right.free_symbols:
        return False
    if left.is_Rational and right.is_Rational:
        return False
    symbols = sorted(left.free_symbols, key=str)
    if not symbols:
        return _same_number(left, right)
    tried = 0
    for point in _points(symbols):
        first, second = left.subs(point), right.subs(point)
        if first.has(sympy.nan, sympy.zoo) or second.has(sympy.nan, sympy.zoo):
            continue
        if not _same_number(first, second):
            return False
        tried += 1
    if tried < 2:
        raise Unread("no point at which both sides have a value")
    return True


def _points(symbols: Sequence[Symbol]) -> list[dict[Symbol, Rational]]:
    """Return points at which to try: all positive, then one symbol after the other negative."""
    values = {symbol: _POINTS[index % len(_POINTS)] + index // len(_POINTS) for index, symbol in enumerate(symbols)}
    larger = {symbol: value * 3 + 1 for symbol, value in values.items()}
    return [values, larger, *({**values, symbol: -values[symbol] * 2} for symbol in symbols[:4])]


def _same_number(left: Expr, right: Expr) -> bool:
    """Whether two numbers agree in all of 30 figures, and then in all of 290; rational ones exactly."""
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
    if (
        first.atoms(Symbol)
        or second.atoms(Symbol)
        or first.has(sympy.nan, sympy.zoo)
        or second.has(sympy.nan, sympy.zoo)
    ):
        raise Unread("a value that cannot be computed")
    return bool(abs(first - second) <= Rational(1, 10**figures) * max(abs(first), abs(second)))


# Several.


def _same_items(reference: Items, answer: Items) -> bool:
    unordered = ("list", "either", "set")
    (name, reference), (other, answer) = _without_name(reference), _without_name(answer)
    if name is not None and other is not None and not same(name, other):
        return False
    if reference.kind in unordered and answer.kind in unordered:
        return _same_members(list(reference.items), list(answer.items))
    if reference.kind != answer.kind or len(reference.items) != len(answer.items):
        return False
    return all(same(left, right) for left, right in zip(reference.items, answer.items, strict=True))


def _same_members(left: list[Reading], right: list[Reading]) -> bool:
    if len(left) != len(right) or len(left) > 200:
        return False
    for item in left:
        found = next((index for index, other in enumerate(right) if same(item, other)), None)
        if found is None:
            return False
        del right[found]
    return True


def _same_regions(reference: sympy.Set | None, answer: sympy.Set | None) -> bool:
    if reference is None or answer is None:
        return False
    if reference == answer:
        return True
    left, right = _pieces(reference), _pieces(answer)
    return left is not None and right is not None and len(left) == len(right) and all(map(_same_piece, left, right))


_Piece = tuple[Expr, Expr, bool, bool]


def _pieces(region: sympy.Set) -> list[_Piece] | None:
    """Return the intervals and points of a set in order, or None where it is made of others."""
    parts = region.args if isinstance(region, sympy.Union) else (region,)
    found: list[_Piece] = []
    for part in parts:
        if isinstance(part, sympy.Interval):
            found.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            found.extend((point, point, False, False) for point in part)
        else:
            return None
    return sorted(found, key=lambda piece: float(piece[0]))


def _same_piece(left: _Piece, right: _Piece) -> bool:
    return left[2:] == right[2:] and all(map(same_expression, left[:2], right[:2]))


# Relations.


def _same_chains(reference: Reading, answer: Reading) -> bool:
    if isinstance(reference, Chain) and isinstance(answer, Chain):
        left, right = _named(reference), _named(answer)
        if left is not None and right is not None and left[0] == right[0]:
            return same(left[1], right[1])
        if "equiv" in (*reference.relations, *answer.relations):
            alike = reference.relations == answer.relations
            return alike and all(map(same, reference.sides, answer.sides))
        if reference.relations == ("in",):
            region = _region_of(answer)
            known = reference.sides[0] in answer.sides
            return known and region is not None and _same_regions(as_region(reference.sides[1]), region)
        if answer.relations == ("in",):
            region = _region_of(reference)
            known = answer.sides[0] in reference.sides
            return known and region is not None and _same_regions(region, as_region(answer.sides[1]))
        return _same_relations(reference, answer)
    if isinstance(reference, Chain):
        named = _named(reference, proven=False)
        if named is not None:
            return same(named[1], answer)
        region = _region_of(reference)
        return region is not None and _same_regions(region, as_region(answer))
    named = _named(answer) if isinstance(answer, Chain) else None
    return named is not None and same(reference, named[1])


def _named(chain: Chain, *, proven: bool = True) -> tuple[Reading, Reading] | None:
    r"""Return the name and the value of `x = 5`, `x \in [1, 2]` or sides that are all the same; None of an equation.

    `proven`: equal expressions may have a number as their value, `a + z = z + a = 101`.
    """
    if chain.relations in (("in",), ("equiv",)):
        return (chain.sides[0], chain.sides[1]) if _is_name(chain.sides[0]) else None
    if set(chain.relations) != {"="}:
        return None
    *before, last = chain.sides
    if _is_name(before[0]) and all(same(side, last) for side in before[1:]):
        return before[0], last
    if all(isinstance(side, MathValue) for side in chain.sides):
        values = [side for side in chain.sides if isinstance(side, MathValue)]
        if all(not value.expr.free_symbols for value in values) and all(same(last, side) for side in before):
            return before[0], last
        if (
            proven
            and len(before) > 1
            and all(same(left, right) for left, right in pairwise(before))
            and _is_number(last)
        ):
            return before[0], last
    return None


def _is_name(reading: Reading) -> bool:
    """Whether a side is a symbol, or a function of symbols or numbers such as `f(x)`; a point of symbols is one too."""
    if isinstance(reading, Items):
        return reading.kind == "round" and all(map(_is_name, reading.items))
    if isinstance(reading, Words):
        return True
    if not isinstance(reading, MathValue) or reading.unit != 1:
        return False
    named = reading.expr.args[0] if isinstance(reading.expr, sympy.Abs) else reading.expr
    if named.is_Mul and all(factor.is_Symbol and factor.name.isupper() for factor in named.args):
        return True  # the segment AB
    return bool(reading.expr.is_Symbol) or isinstance(reading.expr, AppliedUndef)


def _is_number(reading: Reading) -> bool:
    return isinstance(reading, MathValue) and not reading.expr.free_symbols


_TURNED = {"<": ">", "leq": "geq", "neq": "neq", "=": "="}


def _same_relations(reference: Chain, answer: Chain) -> bool:
    """Whether two chains hold the same relations, each a multiple of the other by a constant."""
    left, right = list(_relations(reference)), list(_relations(answer))
    if len(left) != len(right):
        return False
    for item in left:
        found = next((index for index, other in enumerate(right) if _same_relation(item, other)), None)
        if found is None:
            return False
        del right[found]
    return True


def _relations(chain: Chain) -> Iterator[tuple[str, Expr]]:
    """Yield each relation as an expression that is `=`, `neq`, `>` or `geq` zero."""
    for (left, right), relation in zip(pairwise(chain.sides), chain.relations, strict=True):
        if (
            not isinstance(left, MathValue)
            or not isinstance(right, MathValue)
            or (left.unit != right.unit and 1 not in (left.unit, right.unit))
        ):
            raise Unread("a relation of what is no value")
        difference = left.expr - right.expr
        turned = relation in ("<", "leq")
        yield _TURNED[relation] if turned else relation, -difference if turned else difference


def _same_relation(left: tuple[str, Expr], right: tuple[str, Expr]) -> bool:
    if left[0] != right[0] or left[1].free_symbols != right[1].free_symbols or not left[1].free_symbols:
        return False
    if left[1] == 0 or right[1] == 0:
        return False
    point = _points(sorted(left[1].free_symbols, key=str))[1]
    first, second = left[1].subs(point), right[1].subs(point)
    if second == 0 or first.has(sympy.nan, sympy.zoo) or second.has(sympy.nan, sympy.zoo):
        raise Unread("a relation that cannot be tried")
    ratio = first / second
    if left[0] in (">", "geq") and not ratio.evalf() > 0:
        return False
    return same_expression(sympy.expand(left[1]), sympy.expand(right[1] * ratio))


def _region_of(chain: Chain) -> sympy.Set | None:
    """Return the interval that a relation of one symbol to numbers leaves."""
    region: sympy.Set = sympy.S.Reals
    for (left, right), relation in zip(pairwise(chain.sides), chain.relations, strict=True):
        if not isinstance(left, MathValue) or not isinstance(right, MathValue):
            return None
        symbol, number, turned = (
            (left.expr, right.expr, False) if left.expr.is_Symbol else (right.expr, left.expr, True)
        )
        if not symbol.is_Symbol or number.free_symbols or relation in ("=", "neq"):
            return None
        below = (relation in ("<", "leq")) != turned
        open_end = relation in ("<", ">")
        part = (
            sympy.Interval(-sympy.oo, number, True, open_end)
            if below
            else sympy.Interval(number, sympy.oo, open_end, True)
        )
        region = region.intersect(part)
    return region


def _union_of(items: Items) -> sympy.Set | None:
    """Return the numbers that one of several relations of the same symbol leaves."""
    regions = [_region_of(item) if isinstance(item, Chain) else None for item in items.items]
    symbols = {side for item in items.items if isinstance(item, Chain) for side in item.sides if is_symbol(side)}
    return None if None in regions or len(symbols) != 1 else sympy.Union(*regions)


def sympy_form(reading: Reading) -> "sympy.Basic | None":
    """Return a reading as what math-verify compares, or None where it has no such form."""
    if isinstance(reading, MathValue):
        return reading.expr
    if isinstance(reading, Region):
        return reading.points
    if isinstance(reading, Grid):
        return reading.cells
    return None
