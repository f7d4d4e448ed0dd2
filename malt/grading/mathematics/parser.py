r"""Recursive descent over the tokens of mathematics: lists, relations, sums, products, powers, atoms.

What a `\command` or a bracket reads is in reader.py, which hands it over.
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
    bounded,
    finite,
    has_unit,
    is_symbol,
    is_unit,
    join_sets,
    measured,
    raise_to,
    signed,
    symbols_in,
    unit,
    whole,
)
from malt.grading.mathematics.tokens import FUNCTIONS, Token, TokenCursor, Unread
from malt.grading.words import COUNTED, FILLERS, TURNING, UNITS, number_in_words

_MOST_NESTING = 60
_DOTS = Words("…")
_SIGNS = ("+", "-", "pm", "mp")
_RELATIONS = ("=", "<", ">", "leq", "geq", "neq", "approx", ":", "in", "equiv")
_ALONE = frozenset({":", "in", "approx", "equiv"})
"""Relations that stand in a chain with no other."""
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
    """One method for each rule of the grammar."""

    nouns: frozenset[str]
    openings: "Mapping[str, Callable[[Parser, str], Reading]]"
    """What is read after a command, or a bracket."""
    symbols: set[str] = field(default_factory=set)
    """Names of the symbols that were read."""
    _depth: int = 0
    bars: int = 0
    """Bars that are open, so that the next one closes."""

    # Statements.

    def statement(self) -> Reading:
        """Read the whole: words that lead in, then a list."""
        self._skip_lead_in()
        self.take("approx")
        return self.listed()

    def _skip_lead_in(self) -> None:
        """Step over words before the first value, such as `The total is`; one that turns the meaning is not read."""
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
        """Read items apart by commas, `and` or `or`."""
        items, joined = [self.related()], set[str]()
        while self.take(",", ";") or self.word() in ("and", "or"):
            joined.add(self.word())
            while self.take_word("and", "or"):
                pass
            items.append(self.item())
        return items[0] if len(items) == 1 else several("either" if joined == {"or"} else "list", items)

    def inside(self) -> list[Reading]:
        """Read what stands apart by commas within brackets, where no bar is open."""
        bars, self.bars = self.bars, 0
        found = [self.related()]
        while self.take(",", ";"):
            found.append(self.item())
        self.bars = bars
        return found

    def inside_up_to(self, *closings: str) -> list[Reading]:
        found = self.inside()
        if self.take(*closings) is None:
            self.expect(closings[0])
        return found

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
        sorts = set(relations)
        if sorts == {":"}:
            return Items("ratio", tuple(sides))
        if relations == ["in"] and isinstance(sides[1], Region | Items) and is_symbol(sides[0]):
            return Chain(tuple(sides), ("in",))
        if sorts == {"approx"}:
            self.symbols -= set().union(*map(symbols_in, sides[1:])) - symbols_in(sides[0])
            return sides[0]
        if _ALONE & sorts and len(relations) > 1:
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
        total = signed(sign or "+", whole(first))
        while sign := self.take(*_SIGNS):
            total, decimal = finite(total) + signed(sign, finite(whole(self._product()))), None
        written = None if total.has(EITHER_SIGN) else decimal
        return measured(total, written and ("-" + written if total.is_negative else written))

    def _product(self) -> Reading:
        """Read factors side by side or with signs between them, and the unit after them."""
        first = self._power(mixed=True)
        decimal = first.decimal if isinstance(first, MathValue) else None
        if not self._goes_on():
            return measured(first.expr, decimal) if isinstance(first, MathValue) else first
        result = whole(first)
        while self._goes_on():
            if self._skip_fillers():
                continue
            operation = "/" if self.take_word("per") else self.take("*", "/")
            factor = self._factor(signed=operation is not None)
            if operation is None and has_unit(result) and not has_unit(factor):
                raise Unread("a value after a unit")
            result = finite(result) / factor if operation == "/" else finite(result) * finite(factor)
            decimal = decimal if is_unit(factor) else None
        return measured(result, decimal)

    def _factor(self, *, signed: bool) -> Expr:
        """Read one factor as an expression, after a sign of multiplication with a sign of its own."""
        negative = signed and self.take("-") is not None
        value = whole(self._power(mixed=signed))
        return -value if negative else value

    def bare_argument(self) -> Expr:
        r"""Read a function's argument without brackets, `\sin 2x`: it ends before a sign or another function."""
        result = self._factor(signed=True)
        while self._goes_on() and self.text() and self.text() not in _ARGUMENT_ENDS:
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
        """Step over small words, if a unit or nothing follows them."""
        start = self.position
        while self.word() in FILLERS:
            self.position += 1
        if self.position > start and self.peek().kind not in ("word", "end"):
            raise Unread("a value after words")
        return self.position > start

    def _goes_on(self) -> bool:
        """Whether another factor follows; a number does not without a sign before it."""
        token = self.peek()
        match token.kind:
            case "end" | "number":
                return False
            case "word":
                low = token.text.lower()
                return low == "per" or low in FILLERS or self._is_unit_word(token)
            case "mark":
                return token.text in _MARKS_AFTER or (token.text == "|" and self.bars == 0)
            case "command":
                return token.text not in _NOT_FACTORS
        return True

    def _is_unit_word(self, token: Token) -> bool:
        low = token.text.lower()
        return token.text in UNITS or low in UNITS or low in self.nouns or low in COUNTED or low in _POWER_WORDS

    # Powers, and what else stands after an atom.

    def _power(self, *, mixed: bool = False) -> Reading:
        """Read an atom with what is raised, lowered or set after it; `mixed`: or a mixed number."""
        if mixed and (number := self._mixed_number()):
            return number
        base = self.atom()
        while (found := self._read_after(base)) is not None:
            base = found
        return base

    def _read_after(self, base: Reading) -> Reading | None:
        if self.take("^"):
            return self._raised(base)
        if self.text() == "!" and self.text(1) != "=":
            self.position += 1
            return MathValue(sympy.factorial(bounded(whole(base), 5000)))
        if self.take("%"):
            return MathValue(whole(base) * PERCENT)
        if self.take("deg"):
            return self._degrees(base)
        if self.text() in _CURRENCIES and self.text(1) == "":
            return MathValue(whole(base) * unit(_CURRENCIES[self.take_any()]))
        return None

    def _raised(self, base: Reading) -> Reading:
        """Read an exponent, or the sign of a degree."""
        if [self.text(ahead) for ahead in range(3)] == ["{", "deg", "}"]:
            self.position += 3
            return self._degrees(base)
        if self.take("deg"):
            return self._degrees(base)
        exponent = self.exponent()
        return MathValue(raise_to(whole(base), exponent))

    def _degrees(self, base: Reading) -> Reading:
        """Return a value in degrees, of an angle or of heat."""
        self.take("C", "F")
        return MathValue(whole(base) * DEGREE)

    def exponent(self) -> Expr:
        """Read what stands after `^`: a group, or one signed number, symbol or bracket."""
        negative = self.take("-") is not None
        value = whole(self.atom())
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
        found = self._read_atom(token)
        self._depth -= 1
        return found

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
            return MathValue(whole(self._power(mixed=True)) * unit(_CURRENCIES[token.text]))
        raise Unread(f"the command \\{token.text}" if token.kind == "command" else f"the sign {token.text!r}")

    def _number(self, digits: str) -> Reading:
        """Read a number: with a base, with a bar over what repeats, or as it stands."""
        if self.take("_"):
            base = whole(self.atom())
            if not (base.is_Integer and 2 <= base <= 36 and digits.isdigit()):
                raise Unread("a number with an index")
            return Based(digits, int(base))
        if "." in digits and self.take("overline", "bar"):
            return self._repeating(digits)
        return MathValue(Rational(digits), Integer(1), digits)

    def _repeating(self, start: str) -> Reading:
        r"""Read what follows `0.1\overline`: `{6}`."""
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
            return MathValue(sympy.Function(name)(*map(whole, self.inside_up_to(")"))))
        return MathValue({"e": sympy.E, "i": sympy.I}[name]) if name in ("e", "i") else self.named(name)

    def named(self, name: str) -> MathValue:
        """Return a symbol of this name, and note that it was read."""
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
        low = token.text.lower()
        is_power = low in _POWER_WORDS
        if (is_power and self.peek().kind != "word") or not self._is_unit_word(token):
            raise Unread(f"the word {token.text!r}")
        if is_power:
            return MathValue(whole(self.atom()) ** _POWER_WORDS[low])
        return MathValue(unit(UNITS.get(token.text) or UNITS.get(low) or low))


def several(kind: str, items: list[Reading]) -> Items:
    """Return items, of another kind where dots stand among them."""
    return Items("dots" if _DOTS in items else kind, tuple(items))
