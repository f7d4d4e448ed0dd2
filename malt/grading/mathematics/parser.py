r"""Recursive-descent parser for tokens of mathematics: lists, relations, sums, products, powers, atoms.

reader.py passes in the functions that read on after a `\command` or a bracket.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Integer, Rational, Symbol

from malt.grading.mathematics.readings import (
    DEGREE,
    EITHER_SIGN,
    PERCENT,
    Based,
    Chain,
    Items,
    MathValue,
    Reading,
    Region,
    Words,
    apply_sign,
    check_finite,
    check_size,
    expr_of,
    has_unit,
    is_symbol,
    is_unit,
    join_sets,
    raise_to,
    split_unit,
    symbols_in,
    unit,
)
from malt.grading.mathematics.tokens import FUNCTIONS, Token, TokenCursor, Unread
from malt.grading.words import COUNTED, FILLERS, TURNING, UNITS, number_in_words

_MOST_NESTING = 60
_DOTS = Words("…")
_SIGNS = ("+", "-", "pm", "mp")
_RELATIONS = ("=", "<", ">", "leq", "geq", "neq", "approx", ":", "in", "equiv")
_ALONE = frozenset({":", "in", "approx", "equiv"})
"""Relations that cannot share a chain with another one."""
_FUNCTION_LETTERS = "fghFGP"
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3}
_LEADING = ("all", "total", "minimum", "maximum", "positive")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound-sterling", "¥": "yen", "₹": "rupee"}
_MARKS_AFTER = ("*", "/", "(", "{", "\\{")
_ARGUMENT_ENDS = frozenset({"*", "/", "(", "|", *FUNCTIONS})
_ENDS = "leq geq neq approx in equiv pmod bmod choose cup cap setminus pm mp rfloor rceil rangle end ldots"
_NOT_FACTORS = frozenset(_ENDS.split())
_MIXED = re.compile(
    r"(?P<whole>[0-9]+) (?:(?P<top>[0-9]+) / (?P<bottom>[0-9]+) "
    r"|frac (?:(?P<digits>[0-9]{2}) |\{ (?P<top2>[0-9]+) \} \{ (?P<bottom2>[0-9]+) \} ))"
)


@dataclass(kw_only=True)
class Parser(TokenCursor):
    """A parser with one method for each rule of the grammar."""

    nouns: frozenset[str]
    openings: "Mapping[str, Callable[[Parser, str], Reading]]"
    """Functions that read on after a command or an opening bracket."""
    symbols: set[str] = field(default_factory=set)
    """Names of the symbols read so far."""
    _depth: int = 0
    bars: int = 0
    """Number of open bars: if there is one, the next bar closes it."""

    # Statements.

    def statement(self) -> Reading:
        """Read the whole text: words that lead in, then a list."""
        self._skip_lead_in()
        self.take("approx")
        return self.listed()

    def _skip_lead_in(self) -> None:
        """Step over words before the first value, such as `The total is`; raise `Unread` if one changes the meaning."""
        start = self.position
        while (word := self.word()) and not number_in_words(word):
            if word in TURNING and word not in _LEADING:
                raise Unread(f"the word {word!r}")
            self.position += 1
            while self.take(":", ","):
                pass
        following = self.peek()
        is_operator = following.text in "+*/^!_" or (following.text == "-" and self.peek(1).spaced)
        if self.position > start and is_operator and self.text(1):
            raise Unread("words before an operator")

    def listed(self) -> Reading:
        """Read items separated by commas, `and` or `or`."""
        items, joined = [self.related()], set[str]()
        while self.take(",", ";") or self.word() in ("and", "or"):
            joined.add(self.word())
            while self.take_word("and", "or"):
                pass
            items.append(self.item())
        return items[0] if len(items) == 1 else join_items("either" if joined == {"or"} else "list", items)

    def inside(self) -> list[Reading]:
        """Read the items within brackets, separated by commas; bars opened outside do not count."""
        bars, self.bars = self.bars, 0
        items = [self.related()]
        while self.take(",", ";"):
            items.append(self.item())
        self.bars = bars
        return items

    def inside_up_to(self, *closings: str) -> list[Reading]:
        items = self.inside()
        if self.take(*closings) is None:
            self.expect(closings[0])
        return items

    def item(self) -> Reading:
        """Read one item of several, which may be dots."""
        return _DOTS if self.take("ldots") else self.related()

    def related(self) -> Reading:
        """Read sides with relations between them."""
        sides, relations = [self._side()], list[str]()
        while relation := self.take(*_RELATIONS):
            sides.append(self._side())
            relations.append(relation)
        if not relations:
            return sides[0]
        kinds = set(relations)
        if kinds == {":"}:
            return Items("ratio", tuple(sides))
        if relations == ["in"] and isinstance(sides[1], Region | Items) and is_symbol(sides[0]):
            return Chain(tuple(sides), ("in",))
        if kinds == {"approx"}:
            self.symbols -= set().union(*map(symbols_in, sides[1:])) - symbols_in(sides[0])
            return sides[0]
        if _ALONE & kinds and len(relations) > 1:
            raise Unread("relations of several sorts")
        return Chain(tuple(sides), tuple(relations))

    def _side(self) -> Reading:
        left = self.sum()
        while operation := self.take("cup", "cap", "setminus"):
            left = join_sets(operation, left, self.sum())
        return Items("modulo", (left, self.atom())) if self.take("pmod", "bmod") else left

    # Expressions.

    def sum(self) -> Reading:
        """Read terms with signs between them."""
        sign = self.take(*_SIGNS)
        first = self._product()
        if sign is None and self.text() not in _SIGNS:
            return first
        decimal = first.decimal if isinstance(first, MathValue) else None
        total = apply_sign(sign or "+", expr_of(first))
        while sign := self.take(*_SIGNS):
            total, decimal = check_finite(total) + apply_sign(sign, check_finite(expr_of(self._product()))), None
        written = None if total.has(EITHER_SIGN) else decimal
        return split_unit(total, written and ("-" + written if total.is_negative else written))

    def _product(self) -> Reading:
        """Read factors side by side or with signs between them, and the unit after them."""
        first = self._power(mixed=True)
        decimal = first.decimal if isinstance(first, MathValue) else None
        if not self._has_next_factor():
            return split_unit(first.expr, decimal) if isinstance(first, MathValue) else first
        result = expr_of(first)
        while self._has_next_factor():
            if self._skip_fillers():
                continue
            operation = "/" if self.take_word("per") else self.take("*", "/")
            factor = self._factor(signed=operation is not None)
            if operation is None and has_unit(result) and not has_unit(factor):
                raise Unread("a value after a unit")
            result = check_finite(result) / factor if operation == "/" else check_finite(result) * check_finite(factor)
            decimal = decimal if is_unit(factor) else None
        return split_unit(result, decimal)

    def _factor(self, *, signed: bool) -> Expr:
        """Read one factor as an expression; `signed`: with a sign of its own, as after a multiplication sign."""
        negative = signed and self.take("-") is not None
        value = expr_of(self._power(mixed=signed))
        return -value if negative else value

    def bare_argument(self) -> Expr:
        r"""Read a function's argument without brackets, `\sin 2x`: it ends before a sign or another function."""
        result = self._factor(signed=True)
        while self._has_next_factor() and self.text() and self.text() not in _ARGUMENT_ENDS:
            result = result * self._factor(signed=False)
        return result

    def _mixed_number(self) -> MathValue | None:
        r"""Read a whole number with a fraction after it, `1 1/4` or `2\frac{1}{2}`; an improper one is ambiguous."""
        if not self.peek().text.isdigit():
            return None
        ahead = " ".join(token.text for token in self.tokens[self.position : self.position + 9])
        if (match := _MIXED.match(ahead + " ")) is None:
            return None
        digits = match["digits"] or "  "
        numerator = int(match["top"] or match["top2"] or digits[0])
        denominator = int(match["bottom"] or match["bottom2"] or digits[1])
        if not 0 < numerator < denominator:
            raise Unread("a whole number beside an improper fraction")
        self.position += len(match[0].split())
        return MathValue(Integer(int(match["whole"])) + Rational(numerator, denominator))

    def _skip_fillers(self) -> bool:
        """Step over small words; raise `Unread` unless a word or nothing follows them."""
        start = self.position
        while self.word() in FILLERS:
            self.position += 1
        if self.position > start and self.peek().kind not in ("word", "end"):
            raise Unread("a value after words")
        return self.position > start

    def _has_next_factor(self) -> bool:
        """Whether another factor follows; a number directly after a factor is none."""
        token = self.peek()
        match token.kind:
            case "end" | "number":
                return False
            case "word":
                lower = token.text.lower()
                return lower == "per" or lower in FILLERS or self._is_unit_word(token)
            case "mark":
                return token.text in _MARKS_AFTER or (token.text == "|" and self.bars == 0)
            case "command":
                return token.text not in _NOT_FACTORS
        return True

    def _is_unit_word(self, token: Token) -> bool:
        text, lower = token.text, token.text.lower()
        return text in UNITS or lower in UNITS or lower in self.nouns or lower in COUNTED or lower in _POWER_WORDS

    # Powers and other suffixes of an atom.

    def _power(self, *, mixed: bool = False) -> Reading:
        """Read an atom with its powers and suffixes; `mixed`: or a mixed number."""
        if mixed and (number := self._mixed_number()):
            return number
        base = self.atom()
        while (extended := self._read_suffix(base)) is not None:
            base = extended
        return base

    def _read_suffix(self, base: Reading) -> Reading | None:
        if self.take("^"):
            return self._read_exponent(base)
        if self.text() == "!" and self.text(1) != "=":
            self.position += 1
            return MathValue(sympy.factorial(check_size(expr_of(base), 5000)))
        if self.take("%"):
            return MathValue(expr_of(base) * PERCENT)
        if self.take("deg"):
            return self._in_degrees(base)
        if self.text() in _CURRENCIES and self.text(1) == "":
            return MathValue(expr_of(base) * unit(_CURRENCIES[self.take_any()]))
        return None

    def _read_exponent(self, base: Reading) -> Reading:
        """Read an exponent, or the sign of a degree."""
        if [self.text(ahead) for ahead in range(3)] == ["{", "deg", "}"]:
            self.position += 3
            return self._in_degrees(base)
        if self.take("deg"):
            return self._in_degrees(base)
        exponent = self.exponent()
        return MathValue(raise_to(expr_of(base), exponent))

    def _in_degrees(self, base: Reading) -> Reading:
        """Return a value in degrees, of an angle or a temperature."""
        self.take("C", "F")
        return MathValue(expr_of(base) * DEGREE)

    def exponent(self) -> Expr:
        """Read what stands after `^`: a group, or one signed number, symbol or bracket."""
        negative = self.take("-") is not None
        value = expr_of(self.atom())
        if self.take("^"):
            value = raise_to(value, self.exponent())
        return -value if negative else value

    # Atoms.

    def atom(self) -> Reading:
        """Read one number, symbol, bracket, function or unit."""
        token = self.peek()
        if token.kind == "end":
            raise Unread("the end is missing")
        self._depth += 1
        if self._depth > _MOST_NESTING:
            raise Unread("too deeply nested")
        self.position += 1
        reading = self._read_atom(token)
        self._depth -= 1
        return reading

    def _read_atom(self, token: Token) -> Reading:
        match token.kind:
            case "number":
                return self._number(token.text)
            case "symbol":
                return self._symbol(token.text)
            case "word":
                return self._unit(token)
        if token.text in self.openings:
            return self.openings[token.text](self, token.text)
        if token.text in _CURRENCIES:
            return MathValue(expr_of(self._power(mixed=True)) * unit(_CURRENCIES[token.text]))
        raise Unread(f"the command \\{token.text}" if token.kind == "command" else f"the sign {token.text!r}")

    def _number(self, digits: str) -> Reading:
        """Read a number: with a base, with a bar over repeating digits, or as it stands."""
        if self.take("_"):
            base = expr_of(self.atom())
            if not (base.is_Integer and 2 <= base <= 36 and digits.isdigit()):
                raise Unread("a number with an index")
            return Based(digits, int(base))
        if "." in digits and self.take("overline", "bar"):
            return self._repeating(digits)
        return MathValue(Rational(digits), Integer(1), digits)

    def _repeating(self, start: str) -> Reading:
        r"""Read the repeating digits after `0.1\overline`, such as `{6}`."""
        self.expect("{")
        repeated = self.peek().text
        self.position += 1
        self.expect("}")
        if not repeated.isdigit():
            raise Unread("what repeats")
        places = len(start.partition(".")[2])
        return MathValue(Rational(start) + Rational(int(repeated), (10 ** len(repeated) - 1) * 10**places))

    def _symbol(self, name: str) -> Reading:
        """Read a symbol with its index and primes, or a function of something."""
        name += self.index()
        if name in _FUNCTION_LETTERS and [self.text(ahead) for ahead in (0, 2, 3)] == ["^", "-", "1"]:
            self.position += 5
            name += "^-1"
        if name[0] in _FUNCTION_LETTERS and self.take("("):
            return MathValue(sympy.Function(name)(*map(expr_of, self.inside_up_to(")"))))
        return MathValue({"e": sympy.E, "i": sympy.I}[name]) if name in ("e", "i") else self.named(name)

    def named(self, name: str) -> MathValue:
        """Return a symbol of this name, and record its name in `symbols`."""
        self.symbols.add(name)
        return MathValue(Symbol(name))

    def index(self) -> str:
        """Read an index and primes as part of a name."""
        name = ""
        while mark := self.take("_", "'"):
            if mark == "'":
                name += "'"
                continue
            name += self.take_to_brace() if self.take("{") else self.take_any()
            name = "_" + name.lstrip("_")
        return name

    def _unit(self, token: Token) -> Reading:
        """Read a unit, with `square` or `cubic` before it."""
        lower = token.text.lower()
        is_power = lower in _POWER_WORDS
        if (is_power and self.peek().kind != "word") or not self._is_unit_word(token):
            raise Unread(f"the word {token.text!r}")
        if is_power:
            return MathValue(expr_of(self.atom()) ** _POWER_WORDS[lower])
        return MathValue(unit(UNITS.get(token.text) or UNITS.get(lower) or lower))


def join_items(kind: str, items: list[Reading]) -> Items:
    """Return the items as one reading, of the kind `dots` if dots are among them."""
    return Items("dots" if _DOTS in items else kind, tuple(items))
